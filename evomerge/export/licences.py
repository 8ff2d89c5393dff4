"""Which licence a merge may carry, from what its parents' folders say.

A merge derives from all its parents, so the most restrictive licence wins, in the order of ``Family``.
One that lets its terms be replaced (permissive, public domain) disappears into the winner; one that does
not (copyleft, community terms) stays in force; where several do, the card says ``other`` and names them.
What no parent states is never guessed. This reads metadata; it is no legal advice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from evomerge.checkpoints import resolve
from evomerge.errors import ConfigError
from evomerge.recipes.yaml import loads


class Family(IntEnum):
    """Families of licences, from the least to the most restrictive."""

    PUBLIC_DOMAIN = 0
    PERMISSIVE = 1
    WEAK_COPYLEFT = 2
    COPYLEFT = 3
    COMMUNITY = 4
    NON_COMMERCIAL = 5
    NO_DERIVATIVES = 6
    UNKNOWN = 7


# Identifiers of https://huggingface.co/docs/hub/repositories-licenses; in each family from mild to strict.
IDENTIFIERS: dict[Family, str] = {
    Family.PUBLIC_DOMAIN: "cc0-1.0 unlicense wtfpl pddl",
    Family.PERMISSIVE: (
        "zlib isc mit ncsa postgresql bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear afl-3.0 "
        "ecl-2.0 artistic-2.0 ofl-1.1 openmdw-1.0 cdla-permissive-2.0 cdla-permissive-1.0 c-uda etalab-2.0 "
        "odc-by cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 apache-2.0"
    ),
    Family.WEAK_COPYLEFT: "ms-pl lppl-1.3c mpl-2.0 epl-1.0 epl-2.0 lgpl lgpl-2.1 lgpl-3.0 lgpl-lr",
    Family.COPYLEFT: (
        "cdla-sharing-1.0 odbl eupl-1.1 eupl-1.2 osl-3.0 cc-by-sa-3.0 cc-by-sa-4.0 gfdl gpl gpl-2.0 gpl-3.0 agpl-3.0"
    ),
    Family.COMMUNITY: (
        "openrail openrail++ bigcode-openrail-m creativeml-openrail-m bigscience-openrail-m "
        "bigscience-bloom-rail-1.0 apple-ascl deepfloyd-if-license grok2-community gemma "
        "llama2 llama3 llama3.1 llama3.2 llama3.3 llama4"
    ),
    Family.NON_COMMERCIAL: (
        "cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 h-research "
        "intel-research apple-amlr fair-noncommercial-research-license"
    ),
    Family.NO_DERIVATIVES: "cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0",
}
RANKS: dict[str, tuple[Family, int]] = {
    identifier: (family, rank) for family, names in IDENTIFIERS.items() for rank, identifier in enumerate(names.split())
}

# (milder, stricter): the milder one's own text allows what carries it to be passed on under the stricter one.
UPGRADES = {
    ("gpl-3.0", "agpl-3.0"),
    ("cc-by-sa-3.0", "cc-by-sa-4.0"),
    ("cc-by-sa-4.0", "gpl-3.0"),
    ("eupl-1.1", "eupl-1.2"),
    ("eupl-1.2", "gpl-3.0"),
    ("eupl-1.2", "agpl-3.0"),
    ("cc-by-nc-2.0", "cc-by-nc-4.0"),
    ("cc-by-nc-3.0", "cc-by-nc-4.0"),
    ("cc-by-nc-2.0", "cc-by-nc-sa-4.0"),
    ("cc-by-nc-3.0", "cc-by-nc-sa-4.0"),
    ("cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
    ("cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
}
# Permissive ones whose terms GPL 2 does not allow to be added.
NOT_INTO_GPL_2 = {"apache-2.0", "openmdw-1.0", "bsd-3-clause-clear", "afl-3.0"}

# The first lines of licence files, for folders whose card says nothing.
TEXTS: tuple[tuple[str, str], ...] = (
    (r"apache license\s+version 2\.0", "apache-2.0"),
    (r"mit license", "mit"),
    (r"gnu affero general public license\s+version 3", "agpl-3.0"),
    (r"gnu lesser general public license\s+version 3", "lgpl-3.0"),
    (r"gnu general public license\s+version 3", "gpl-3.0"),
    (r"gnu general public license\s+version 2", "gpl-2.0"),
    (r"mozilla public license version 2\.0", "mpl-2.0"),
    (r"llama 4 community license", "llama4"),
    (r"llama 3\.3 community license", "llama3.3"),
    (r"llama 3\.2 community license", "llama3.2"),
    (r"llama 3\.1 community license", "llama3.1"),
    (r"meta llama 3 community license", "llama3"),
    (r"llama 2 community license", "llama2"),
    (r"gemma terms of use", "gemma"),
    (r"attribution-noncommercial-noderivatives 4\.0", "cc-by-nc-nd-4.0"),
    (r"attribution-noncommercial-sharealike 4\.0", "cc-by-nc-sa-4.0"),
    (r"attribution-noncommercial 4\.0", "cc-by-nc-4.0"),
    (r"attribution-sharealike 4\.0", "cc-by-sa-4.0"),
    (r"attribution 4\.0 international", "cc-by-4.0"),
)
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "LICENCE.md", "COPYING")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class StatedLicence:
    """The licence that one parent states.

    Args:
        parent: the parent's reference.
        id: the Hub's identifier, ``other`` (then ``name`` says which) or ``unknown``.
        name, link: ``license_name`` and ``license_link`` of its card.
        source: where it was found, in words; empty when nothing was.
    """

    parent: str
    id: str
    name: str = ""
    link: str = ""
    source: str = ""

    @property
    def label(self) -> str:
        """The name to show and to compare by: the identifier, or the name of a licence that has none."""
        return self.name if self.id == "other" else self.id

    @property
    def rank(self) -> tuple[Family, int]:
        """The place in the order; a named licence without an identifier counts as community terms."""
        if self.id == "other":
            strict = re.search(r"non-?commercial|research|\bm?nc\b|\bmnpl\b|\bmrl\b", self.name)
            return (Family.NON_COMMERCIAL if strict else Family.COMMUNITY), 1000
        return RANKS.get(self.id, (Family.UNKNOWN, 0))


@dataclass(frozen=True)
class Licence:
    """The licence of a merge: an identifier for the card's metadata, why, and what a person must look at."""

    id: str
    reason: str
    problems: tuple[str, ...] = ()
    name: str = ""
    link: str = ""
    parents: tuple[StatedLicence, ...] = ()

    @property
    def metadata(self) -> dict[str, str]:
        """The fields ``license``, ``license_name`` and ``license_link`` of the card's front matter."""
        fields = {"license": self.id, "license_name": self.name, "license_link": self.link}
        return {field: value for field, value in fields.items() if value}


def resolve_licence(parents: Sequence[str | Path] | Mapping[str, Path]) -> Licence:
    """Return the licence that a merge of ``parents`` may carry.

    Args:
        parents: references (folders, zoo names, Hub ids), or reference → folder where they are known already.

    Raises:
        CheckpointError: a parent cannot be found.
    """
    if isinstance(parents, Mapping):
        folders = dict(parents)
    else:
        folders = {str(parent): resolve(str(parent)) for parent in parents}
    return combine([read_licence(folder, name) for name, folder in folders.items()])


def read_licence(folder: Path, parent: str = "") -> StatedLicence:
    """Return what ``folder`` says of its licence: its card, its config, or a licence file's text."""
    parent = parent or str(folder)
    front = front_matter(folder)
    stated = _strings(front.get("license"))
    if len(stated) == 1 and stated[0] not in ("other", UNKNOWN):
        identifier = stated[0].lower()
        if identifier in RANKS:
            return StatedLicence(parent, identifier, source="its README.md")
        return StatedLicence(parent, "other", _slug(identifier), source="its README.md")
    if stated and stated != [UNKNOWN]:
        name = front.get("license_name") or "-or-".join(word for word in stated if word != "other")
        if name:
            return StatedLicence(parent, "other", _slug(str(name)), _link(front, parent), "its README.md")
    return _from_config(folder, parent) or _from_text(folder, parent) or StatedLicence(parent, UNKNOWN)


def combine(stated: Sequence[StatedLicence]) -> Licence:
    """Return the licence of a work derived from works under ``stated``: the most restrictive or ``other``."""
    parents = tuple(stated)
    unknown = [one for one in parents if one.rank[0] is Family.UNKNOWN]
    if unknown or not parents:
        return _unknown(parents, unknown)
    distinct = list({one.label: one for one in parents}.values())
    winner = max(distinct, key=lambda one: one.rank)
    staying = [one for one in distinct if not _gives_way(one, winner)]
    problems = tuple(_problems(distinct, staying))
    if len(staying) == 1:
        reason = _reason(winner, parents, distinct)
        name, link = (winner.name, winner.link) if winner.id == "other" else ("", "")
        return Licence(winner.id, reason, problems, name, link, parents)
    names = sorted(one.label for one in staying)
    reason = f"the terms of {_and(names)} are all in force: none of them lets itself be replaced by another"
    return Licence("other", reason, problems, "-and-".join(names), "", parents)


def front_matter(folder: Path) -> Mapping[str, Any]:
    """Return the YAML mapping at the top of ``folder``'s README.md; empty when there is none to read."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        found = re.match(r"\A\ufeff?---\s*\n(.*?)\n---\s*(\n|\Z)", text, re.DOTALL)
        data = loads(found[1]).data if found else None
    except (OSError, UnicodeDecodeError, ConfigError):
        return {}
    return data if isinstance(data, Mapping) else {}


def _unknown(parents: tuple[StatedLicence, ...], unknown: Sequence[StatedLicence]) -> Licence:
    known = sorted({one.label for one in parents if one not in unknown})
    silent = _and([one.parent for one in unknown]) if unknown else "any parent"
    reason = f"no licence is stated by {silent}"
    reason += f"; the others state {_and(known)}" if known else ""
    todo = "ask the authors, or find the licence yourself, before you share this model; then edit README.md"
    return Licence("other", reason, (f"{reason}: {todo}",), "-and-".join([*known, UNKNOWN]), "", parents)


def _gives_way(one: StatedLicence, winner: StatedLicence) -> bool:
    if one.label == winner.label:
        return False
    family, target = one.rank[0], winner.rank[0]
    if (one.id, winner.id) in UPGRADES:
        return True
    if family <= Family.PERMISSIVE:
        return not (winner.id in ("gpl-2.0", "gpl") and one.id in NOT_INTO_GPL_2)
    # Weak copyleft covers its own files and lets a larger work be under other terms, copyleft ones above all.
    return family is Family.WEAK_COPYLEFT and target is Family.COPYLEFT and one.id.startswith(("lgpl", "mpl"))


def _problems(distinct: Sequence[StatedLicence], staying: Sequence[StatedLicence]) -> Iterable[str]:
    for one in distinct:
        if one.rank[0] is Family.NO_DERIVATIVES:
            forbidden = "which does not allow derived works to be shared: keep the merge private"
            yield f"{one.parent} is under {one.label}, {forbidden}"
    if len(staying) < 2:
        return
    names = _and(sorted(one.label for one in staying))
    if any(one.rank[0] is Family.COPYLEFT for one in staying):
        advice = "do not share the merge unless the authors agree"
        yield f"{names} contradict each other (copyleft forbids further conditions): {advice}"
    else:
        yield f"{names} apply at the same time: read and follow each of them before you share the merge"


def _reason(winner: StatedLicence, parents: Sequence[StatedLicence], distinct: Sequence[StatedLicence]) -> str:
    if len(distinct) == 1:
        return f"stated by all {len(parents)} parents" if len(parents) > 1 else "stated by the parent"
    others = _and(sorted(one.label for one in distinct if one is not winner))
    return f"the most restrictive of the parents' licences (the others: {others})"


def _from_config(folder: Path, parent: str) -> StatedLicence | None:
    try:
        stated = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("license")
    except (OSError, ValueError, AttributeError):
        return None
    identifier = stated.lower() if isinstance(stated, str) else ""
    return StatedLicence(parent, identifier, source="its config.json") if identifier in RANKS else None


def _from_text(folder: Path, parent: str) -> StatedLicence | None:
    for name in LICENCE_FILES:
        try:
            head = (folder / name).read_text(encoding="utf-8", errors="replace")[:600].lower()
        except OSError:
            continue
        identifier = next((one for pattern, one in TEXTS if re.search(pattern, head)), None)
        if identifier:
            return StatedLicence(parent, identifier, source=f"the text of its file {name}")
    return None


def _strings(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [one.strip().lower() for one in values if isinstance(one, str) and one.strip()]


def _link(front: Mapping[str, Any], parent: str) -> str:
    """Return the card's ``license_link`` where it means something outside the parent's own repository."""
    link = str(front.get("license_link") or "")
    return link if link.startswith(("https://", "http://")) else ""


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.+]+", "-", name.lower()).strip("-")


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
