"""The arms of fine-tuning. One row says all that the rest of the study needs to know about an arm.

An arm from outside the package is a module that calls ``register_arm`` when it is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from fcs_utils.errors import StudyError, refuse
from fcs_utils.files import module_sum
from fcs_utils.training.losses import Losses, cross_entropy, mutual

N = TypeVar("N", int, float)
GREY = ("#6b6b6b", "P")


@dataclass(frozen=True)
class Arm:
    """How a compact network is trained, and beside whom.

    name: in configurations and records. label: in tables and figures. loss: takes the arm's options as keywords and
    returns the loss function. peer: the second network, if any: the unpruned original, or a second compact network,
    pruned by another criterion. frozen: the peer teaches and does not learn. fresh: training starts from fresh
    weights. searched: pilot runs choose the learning rate; otherwise the arm takes the reference's schedule.
    budgets: the label for each budget, where an arm has several. style: colour and marker in figures. settings:
    the options that differ from their defaults, see ``with_options``. module: registered it; code: SHA-256 of that
    module's file, None for this package's own arms and for an arm that a notebook or a script registers.
    """

    name: str
    label: str
    loss: Callable[..., Losses] = lambda: cross_entropy
    peer: Literal["none", "original", "compact"] = "none"
    frozen: bool = False
    fresh: bool = False
    searched: bool = True
    budgets: Mapping[str, str] = field(default_factory=dict)
    style: tuple[str, str] = GREY
    settings: Mapping[str, Any] = field(default_factory=dict)
    module: str = __name__
    code: str | None = None

    @property
    def networks(self) -> int:
        """How many networks take part."""
        return 1 if self.peer == "none" else 2

    @property
    def trained(self) -> int:
        """How many of them learn, from the first on."""
        return 1 if self.frozen else self.networks

    @property
    def options(self) -> tuple[str, ...]:
        """The options that mean something for this arm: those of its loss, of a peer that learns, of how the peer is made."""
        return (
            *inspect.signature(self.loss).parameters,
            *(("peer_learning_rate", "updates") if self.trained > 1 else ()),
            *(("twin_criterion",) if self.peer == "compact" else ()),
            *(("budget",) if self.budgets else ()),
        )

    def with_options(self, **options: Any) -> Arm:
        """This arm with some options set, such as ``temperature=2.0``. Raises StudyError for an option of another arm."""
        for option in options:
            if option not in self.options:
                raise refuse(f"options of arm {self.name}", option, ", ".join(self.options) or "none")
        return replace(self, settings={**self.settings, **options})

    def losses(self) -> Losses:
        """The loss function with this arm's options."""
        wanted = inspect.signature(self.loss).parameters
        return self.loss(**{option: value for option, value in self.settings.items() if option in wanted})

    @property
    def sequential(self) -> bool:
        """Whether the first network is updated before the peer's loss is made, from its renewed predictions."""
        return bool(self.settings.get("updates") == "sequential")

    def macs_per_image(self, forward: Sequence[N]) -> N:
        """Training MACs for one image, from the MACs of a forward pass of each network (first, peer)."""
        # Backward is two more multiply-adds for each of the forward pass: one for inputs, one for weights.
        return 3 * sum(forward[: self.trained]) + sum(forward[self.trained :]) + (forward[0] if self.sequential else 0)

    @property
    def rows(self) -> tuple[str, ...]:
        """The names under which tables list this arm: its own, or one for each budget."""
        return tuple(self.budgets.values()) or (self.name,)


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("tft", "TFT", style=("#E69F00", "s")),  # (M10)
        Arm("mlft", "MLFT", loss=mutual, peer="original", style=("#0072B2", "o")),  # (M11)
        Arm("twin", "MLFT, compact peer", loss=mutual, peer="compact", style=("#56B4E9", "D")),
        Arm("kd", "KD", loss=mutual, peer="original", frozen=True, style=("#009E73", "^")),  # (M12), as the next
        Arm("scratch", "scratch", fresh=True, searched=False, budgets={"epochs": "scratch-E", "macs": "scratch-B"}),
    )
}


def register_arm(arm: Arm) -> Arm:
    """Add an arm of your own under its name, so that configurations and profiles may name it; returns it.

    The checksum of the calling module's file becomes part of the identity of the arm's runs. Raises StudyError when an arm of
    another module has the name.

        def smoothed(smoothing: float = 0.1) -> Losses:
            return lambda logits, labels: [F.cross_entropy(logits[0], labels, label_smoothing=smoothing)]

        register_arm(Arm("smoothed", "label smoothing", loss=smoothed))
    """
    module = inspect.stack()[1].frame.f_globals["__name__"]
    if arm.name in ARMS and ARMS[arm.name].module != module:
        raise refuse("name of an arm", arm.name, f"one that is not taken; taken: {', '.join(ARMS)}")
    ARMS[arm.name] = replace(arm, module=module, code=module_sum(module))
    return ARMS[arm.name]


def code_of_arm(name: str) -> str | None:
    """What a run's identity holds of an arm's code: nothing for this package's own, else its module's SHA-256.

    Raises StudyError for an unknown arm, and for one that a notebook or a script registers: no other process can import it.
    """
    arm = get_arm(name)
    if arm.module != __name__ and arm.code is None:
        raise StudyError(
            f"arm {name!r} is registered in {arm.module}, a notebook or a script; a study needs a module: "
            "move it to a file of its own and name that file's module in plugins"
        )
    return arm.code


def get_arm(name: str) -> Arm:
    """The arm of a name. Raises StudyError for an unknown one."""
    if name not in ARMS:
        raise refuse("arm", name, ", ".join(ARMS))
    return ARMS[name]


def arm_row(method: str, budget: str) -> str:
    """The name under which tables list a run of an arm, such as ``mlft`` or ``scratch-E``."""
    return ARMS[method].budgets.get(budget, method) if method in ARMS else method


def arm_label(row: str) -> str:
    """The words for an arm's row in tables and figures; a row without an arm here, such as ``scratch-E``, names itself."""
    return ARMS[row].label if row in ARMS else row


def arm_style(row: str) -> tuple[str, str]:
    """Colour and marker of an arm's row in figures."""
    return ARMS[row].style if row in ARMS else GREY


def is_searched(row: str) -> bool:
    """Whether pilot runs choose the learning rate of an arm's row."""
    return not any(row in arm.rows for arm in ARMS.values() if not arm.searched)
