"""Networks for time series [N, C, T]."""

from torch import Tensor, nn

from withstand.protocols import Space


class SeriesCNN(nn.Module):
    """One convolution of 66 filters of 12 steps, max-pooling, and one hidden layer of 1024 units.

    Input [N, channels, T], any real values, any T. The pooling leaves `cells` maxima in each filter, whatever T is: 15 are
    the official code's pooling by 4 for its 60 steps. Dropout 0.15 and batch norm stand before the logits.

    Reference: target network of the official code of Belkhouja, Doppa, "Adversarial Framework with Certified Robustness for
    Time-Series Domain via Statistical Features", JAIR 73, 2022, arXiv 2207.04307.
    """

    def __init__(
        self, channels: int = 1, classes: int = 2, width: int = 66, hidden: int = 1024, cells: int = 15
    ) -> None:
        super().__init__()
        self.space = Space((channels, None), None, classes)
        same = nn.ZeroPad1d((5, 6))  # what padding="same" does for 12 steps, without its warning
        self.features = nn.Sequential(same, nn.Conv1d(channels, width, 12), nn.ReLU(), nn.AdaptiveMaxPool1d(cells))
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(width * cells, hidden),
            nn.ReLU(),
            nn.Dropout(0.15),
            nn.BatchNorm1d(hidden),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
