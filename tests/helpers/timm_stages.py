"""What timm calls the layers of a RegNet block, and what our stages call them."""

STAGE_NAMES = {
    "conv1.conv": "pointwise_in",
    "conv1.bn": "norm_in",
    "conv2.conv": "depthwise",
    "conv2.bn": "norm_depthwise",
    "se.fc1": "gate.reduce",
    "se.fc2": "gate.expand",
    "conv3.conv": "pointwise_out",
    "conv3.bn": "norm_out",
    "downsample.conv": "shortcut.0",
    "downsample.bn": "shortcut.1",
}
