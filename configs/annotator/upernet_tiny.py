"""UPerNet on a narrow ResNet-18, trained on the storybook world: the detector of the embedded model.

``python -m controlnet.storybook.train_detector`` trains it, ``controlnet/storybook/README.md`` tells how. Run
as Python by mmengine, as any mmseg config. It knows the classes of the storybook only, under their ADE20K
indices.
"""

checkpoint = "upernet_tiny.safetensors"  # a name in annotator/ckpts

norm_cfg = dict(type="BN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(
        type="ResNetV1c",
        depth=18,
        stem_channels=24,
        base_channels=24,
        norm_cfg=norm_cfg,
        norm_eval=False,
        style="pytorch",
    ),
    decode_head=dict(
        type="UPerHead",
        in_channels=[24, 48, 96, 192],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=48,
        dropout_ratio=0.0,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)

# Scenes are drawn at 256 pixels a side, so that is the scale this network knows.
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 256), keep_ratio=True),
    dict(type="PackSegInputs"),
]
