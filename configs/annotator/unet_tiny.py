"""A small U-Net, trained on the storybook world: a second opinion on what the embedded model draws.

It shares nothing with ``upernet_tiny.py``, neither shape nor scenes of training, so it has other weaknesses:
what both find is there. ``python -m controlnet.storybook.train_detector --config
configs/train/tiny_second_detector.yaml`` trains it.
"""

checkpoint = "unet_tiny.safetensors"  # a name in annotator/ckpts

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
        type="UNet",
        in_channels=3,
        base_channels=12,
        num_stages=5,
        strides=(2, 1, 1, 1, 1),
        enc_num_convs=(2, 2, 2, 2, 2),
        dec_num_convs=(2, 2, 2, 2),
        downsamples=(True, True, True, True),
        enc_dilations=(1, 1, 1, 1, 1),
        dec_dilations=(1, 1, 1, 1),
        norm_cfg=norm_cfg,
        act_cfg=dict(type="ReLU"),
        upsample_cfg=dict(type="InterpConv"),
        norm_eval=False,
    ),
    decode_head=dict(
        type="FCNHead",
        in_channels=12,
        in_index=4,
        channels=24,
        num_convs=1,
        concat_input=False,
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
