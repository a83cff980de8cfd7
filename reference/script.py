"""A TorchScript encoder with a frozen layer and dropout.

Writes crates/simclr/tests/golden/script_frozen.pt: the first convolution has requires_grad=False, everything behind it
is trained, and dropout draws a number for every value of a batch.
"""

from pathlib import Path

import torch
from torch import nn

OUT = Path(__file__).parent.parent / "crates/simclr/tests/golden"


class PartlyFrozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.dropout = nn.Dropout(0.5)
        for parameter in self.stem.parameters():
            parameter.requires_grad = False

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.dropout(torch.relu(self.conv(x))).mean((2, 3))


torch.manual_seed(0)
torch.jit.script(PartlyFrozen()).save(str(OUT / "script_frozen.pt"))
