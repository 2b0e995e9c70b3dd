"""Which networks a file contains, which one is taken, and the form of the checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from resim.exchange.files.pickle_values import is_same_tensor, shape_of
from resim.exchange.names import (
    PUBLISHED_HEAD,
    PUBLISHED_KEY,
    PUBLISHED_QUERY,
    PUBLISHED_QUEUE,
    SCHEMES,
    Scheme,
    is_counter,
    numbered_scheme,
)
from resim.exchange.networks.pyramids import find_pyramid
from resim.exchange.networks.state_dicts import State, find_states
from resim.exchange.networks.stems import find_stem
from resim.exchange.networks.unknown_networks import describe_unknown

_COPIES = frozenset(
    "k key keys ema m momentum t teacher target mean avg averaged average swa moving polyak shadow slow".split()  # noqa: SIM905
)
_OF_TRAINING = frozenset("optimizer optim exp buffer grad grads gradient gradients fisher hessian mask masks".split())  # noqa: SIM905
_QUERIES = frozenset("q query online student".split())  # noqa: SIM905
_VARIANCES = ("running_var", "_variance")  # PyTorch's and PaddlePaddle's
_OURS = re.compile(r"head\.[02]\.\w+|convs\.C\d\.\w+")

FormName = Literal["published", "detectron2", "torchvision-detection", "mmdet", "resim", "caffe2", "resnet"]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A ResNet in a file."""

    state: State
    prefix: str
    """The part of its names before the ResNet, in its dictionary, without `module.` and similar parts."""
    scheme: Scheme
    label: str
    """The same in the file, for messages and for --prefix."""
    has_last_stage: bool

    def ours(self) -> dict[str, str]:
        """Its entries in the file to our names below `backbone.`."""
        named: dict[str, str] = {}
        for bare, name in self.state.bare.items():
            inner = bare.removeprefix(self.prefix)
            if self.scheme.name == "detectron2" and bare.startswith("roi_heads.res5."):  # a C4 detector's fifth stage
                inner = bare.removeprefix("roi_heads.")
            elif self.prefix == "backbone.body." and bare.startswith("roi_heads.box_head.layer4."):  # ours on C4
                inner = bare.removeprefix("roi_heads.box_head.")
            elif not bare.startswith(self.prefix):
                continue
            ours = None if is_counter(bare) else self.scheme.to_ours(inner)
            if ours is not None:
                named[name] = ours
        if self.scheme.name in ("torchvision", "numbered") and "backbone.conv1.weight" not in named.values():
            named |= find_stem(self.state, self.prefix, named)
        return named

    @property
    def has_statistics(self) -> bool:
        """Whether it has what its norms normalise by; gradients and an optimizer's moments have names and no more."""
        if self.scheme.name == "caffe2":
            return True
        return any(name.startswith(self.prefix) and name.endswith(_VARIANCES) for name in self.state.bare)


@dataclass(frozen=True, kw_only=True)
class Form:
    """A form of checkpoint, and the entries of the network that was taken."""

    name: FormName
    network: Network
    ours: Mapping[str, str]
    """Entries of the file to our names: backbone, head, FPN."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Of a published checkpoint: entries of the key encoder to our names."""
    queue: Mapping[str, str] = field(default_factory=dict)
    """Of a published checkpoint: its queue and the position in it."""
    others: tuple[str, ...] = ()
    """The labels of the file's other networks."""
    notes: tuple[str, ...] = ()

    @property
    def state(self) -> State:
        """The dictionary that contains the network."""
        return self.network.state

    def model_names(self) -> dict[str, str]:
        """Entries of the file to the names in the state_dict of a `ReSim`: `query.`, `key.`, the queue's."""
        names = {entry: f"query.{ours}" for entry, ours in self.ours.items()}
        return names | {entry: f"key.{ours}" for entry, ours in self.keys.items()} | dict(self.queue)


def recognise(data: Mapping[str, object], prefix: str | None = None) -> Form:
    """The network to take from a file, and its form.

    Of several complete networks it is the one that gradients train (query, online, student), not a copy of it (key,
    teacher, target, moving average); otherwise the one with the shortest prefix.

    Args:
        data: the content of the file.
        prefix: of the network to take, as in `Network.label`; the dots at its end are optional.

    Raises:
        ValueError: no ResNet, or none with this prefix; the message lists what the file contains.
    """
    states = find_states(data)
    networks = find_networks(states)
    if not networks:
        raise ValueError(f"no ResNet{describe_unknown(data, states)}")
    labels = [network.label for network in networks]
    if prefix is None:
        chosen = min(networks, key=_preference)
    else:
        name = prefix.strip(".").removeprefix("state_dict.")
        matches = [n for n in networks if name == n.label.strip(".")] or [
            n for n in networks if name in (n.prefix.strip("."), n.label.partition(".")[2].strip("."))
        ]
        if not matches:
            places = ", ".join(repr(label) if label else "its top" for label in labels)
            raise ValueError(f"no ResNet below --prefix {prefix!r}; those in it are below {places}")
        chosen = matches[0]
    if prefix is None and not chosen.state.layers:  # a module states more of the same network
        modules = [n for n in networks if n.state.layers and n.has_last_stage]
        chosen = next((n for n in modules if _is_same(n, chosen)), chosen)
    rivals = [n for n in networks if n is not chosen and n.has_last_stage]
    others = [n for n in rivals if (n.has_statistics or not _is_of_training(n)) and not _is_same(n, chosen)]
    return _make_form(chosen, [network for network in networks if network.state is chosen.state], others)


def _is_of_training(network: Network) -> bool:
    """Whether a dictionary with a network's names has gradients, moments or masks, by the words before them."""
    return bool(words_of(network.label) & _OF_TRAINING)


def _is_same(network: Network, other: Network) -> bool:
    """Whether two names refer to one network, as those of an attribute and of a part of an `nn.Sequential` may."""
    one, two = ({ours: n.state.entries[name] for name, ours in n.ours().items()} for n in (network, other))
    return one.keys() == two.keys() and all(is_same_tensor(one[name], two[name]) for name in one)


def find_networks(states: Sequence[State]) -> list[Network]:
    """Each ResNet in these dictionaries, by the name of the first convolution of its first block."""
    networks: list[Network] = []
    for state in states:
        for bare, name in state.bare.items():
            for scheme in SCHEMES:
                match = scheme.anchor.fullmatch(bare)
                if match:
                    networks.append(_network(state, match["prefix"], scheme, name, bare))
        networks += _numbered_networks(state)
    return networks


def _numbered_networks(state: State) -> list[Network]:
    """ResNets whose parts are numbered, `backbone.4.0.conv1.weight`: four stages in a row."""
    networks: list[Network] = []
    numbers: dict[str, dict[int, str]] = {}
    for bare in state.bare:
        match = re.fullmatch(r"((?:.+\.)?)(\d+)\.0\.conv1\.weight", bare)
        if match:
            numbers.setdefault(match[1], {})[int(match[2])] = bare
    for prefix, stages in numbers.items():
        first = min(stages)
        if first > 0 and all(first + step in stages for step in range(4)):
            scheme = numbered_scheme(state.bare, first, prefix)
            networks.append(_network(state, prefix, scheme, state.bare[stages[first]], stages[first]))
    return networks


def _network(state: State, prefix: str, scheme: Scheme, name: str, bare: str) -> Network:
    prefix_in_file = name.removesuffix(bare.removeprefix(prefix))
    label = state.label(prefix_in_file if prefix_in_file != name else prefix)
    has_last_stage = f"{prefix}{scheme.last}" in state.bare
    return Network(state=state, prefix=prefix, scheme=scheme, label=label, has_last_stage=has_last_stage)


def words_of(prefix: str) -> set[str]:
    """The words of a prefix: `module.encoderQ.` -> module, encoder, q."""
    return set(re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", prefix).lower().replace("_", " ")))


def _preference(network: Network) -> tuple[bool, bool, bool, bool, int]:
    words = words_of(network.label)
    is_part = not network.has_last_stage
    return is_part, not network.has_statistics, not words & _QUERIES, bool(words & _COPIES), len(network.prefix)


def _make_form(chosen: Network, siblings: Sequence[Network], others: Sequence[Network]) -> Form:
    ours = chosen.ours()
    state = chosen.state
    bare, prefix = state.bare, chosen.prefix
    name = _form_name(chosen)
    keys: dict[str, str] = {}
    queue: dict[str, str] = {}
    if name == "published":
        queue = {entry: PUBLISHED_QUEUE[short] for short, entry in bare.items() if short in PUBLISHED_QUEUE}
        twin = next((network for network in siblings if network.prefix == PUBLISHED_KEY), None)
        if twin is not None:
            keys = twin.ours() | _head(state, f"{PUBLISHED_KEY}{PUBLISHED_HEAD}", twin.ours())
            keys |= find_pyramid(state, PUBLISHED_KEY, [], keys)[0]
            others = [network for network in others if network is not twin]
    rivals = [network.prefix for network in siblings if network is not chosen]
    pyramid, notes = find_pyramid(state, prefix, rivals, ours)
    heads = {"published": f"{prefix}{PUBLISHED_HEAD}", "detectron2": f"{prefix}stem.fc.", "resim": "head."}
    ours |= pyramid
    if name in heads:
        ours |= _head(state, heads[name], ours)
    if name == "resim":
        ours |= {entry: short for short, entry in bare.items() if re.fullmatch(r"convs\.C\d\.\w+", short)}
    if name == "resnet" and any(re.match(r"neck\.(lateral|fpn)_convs", short) for short in bare):
        name = "mmdet"
    if name == "resnet" and (prefix.endswith("body.") or any("_blocks." in entry for entry in pyramid)):
        name = "torchvision-detection"
    labels = tuple(dict.fromkeys(network.label for network in others if network.label != chosen.label))
    return Form(name=name, network=chosen, ours=ours, keys=keys, queue=queue, others=labels, notes=tuple(notes))


def _form_name(network: Network) -> FormName:
    if network.scheme.name == "detectron2":
        return "detectron2"
    if network.scheme.name == "caffe2":
        return "caffe2"
    if network.scheme.name != "torchvision":
        return "resnet"
    if network.prefix == PUBLISHED_QUERY:
        return "published"
    parts = re.compile(r"fpn\.(lateral|output)\d\.|head\.0\.weight|convs\.C")
    if network.prefix == "backbone." and any(parts.match(name) for name in network.state.bare):
        return "resim"
    return "resnet"


def _head(state: State, prefix: str, ours: Mapping[str, str]) -> dict[str, str]:
    """The entries of our global head: two linear layers, the first as wide as C5; {} for another head.

    Another head is left over.
    """
    entries = {short: name for short, name in state.bare.items() if short.startswith(prefix)}
    places = {short.removeprefix(prefix): name for short, name in entries.items()}
    if not places or not all(re.fullmatch(r"[02]\.(weight|bias)", place) for place in places):
        return {}
    top = max((shape_of(state.entries[name])[:1] for name, our in ours.items() if "layer4.0.conv" in our), default=())
    first, last = (shape_of(state.entries[places[p]]) if p in places else None for p in ("0.weight", "2.weight"))
    if first is not None and last is not None and top:
        biases = all(f"{place}.bias" in places for place in "02")
        if not biases or len(first) != 2 or len(last) != 2 or first != (*top, *top) or last[1:] != top:
            return {}
    return {name: f"head.{place}" for place, name in places.items()}
