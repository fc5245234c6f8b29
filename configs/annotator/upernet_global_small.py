"""UPerNet on UniFormer-S, trained on ADE20K: the segmentation detector of the original ControlNet.

For inference only. Run as Python by mmengine, as any mmseg config.
"""

checkpoint = "upernet_global_small.pth"  # a name in annotator/ckpts
fetch = "upernet_global_small"

# The original hands RGB pixels to a pipeline that takes BGR, so that this network sees blue first. ControlNet
# was
# trained on the maps it then gives: keep it here, and leave it out for any other detector.
feed_rgb_as_bgr = True

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
        type="UniFormer", embed_dim=[64, 128, 320, 512], layers=[3, 4, 8, 3], head_dim=64, drop_path_rate=0.25
    ),
    decode_head=dict(
        type="UPerHead",
        in_channels=[64, 128, 320, 512],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels=320,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)

test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    dict(type="PackSegInputs"),
]
