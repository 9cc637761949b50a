"""Upload an encoder folder to a model hub in one commit, with a model card; a dry run says what would go up, and sends nothing.

The token is what the hub's own client finds: `HF_TOKEN`, or what `hf auth login` left.
"""

from __future__ import annotations

import glob
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import influcoder
from influcoder.errors import ConfigError, RunError
from influcoder.model_card import CARD_FILE, Publication, load_fidelity, model_card
from influcoder.onnx_settings import GRAPH_FILES, GRAPH_FOLDER, load_settings
from influcoder.runs import open_run, sha256_of_file, write_text_atomic

PARITY_FILE = "parity.json"
SUFFIXES = (".json", ".safetensors", ".onnx", ".txt", ".md", ".jinja", ".model")
"""data that no loader runs; a pickle or a script is none of them"""
NAMES = ("LICENSE", "NOTICE")


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Upload an encoder folder with a generated model card to the Hugging Face Hub, in one commit."""

    encoder: str
    """encoder folder of a student run, with `onnx/`; its README.md becomes the card"""
    repository: str
    """OWNER/NAME; made when it is not there"""
    license: str
    """licence of the encoder, as the hub names it (apache-2.0, mit, cc-by-4.0, other); nobody can guess it for you"""
    license_name: str | None = None
    """of a licence that is `other`"""
    license_link: str | None = None
    """where to read a licence that is `other`"""
    base_model: str | None = None
    """hub id of what the encoder was before; null takes what the student run knows"""
    eval: str | None = None
    """eval run of this student, whose test-side table goes into the card; null shows the validation side alone"""
    private: bool = False
    """keep the repository to yourself; one that is public already is refused then"""
    dry_run: bool = False
    """write the card and list what would go up; needs no network"""

    def __post_init__(self) -> None:
        part = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
        if not re.fullmatch(f"{part}/{part}", self.repository) or ".." in self.repository or "--" in self.repository:
            raise ConfigError(f"repository: {self.repository!r:.200}; expected OWNER/NAME of letters, digits, '-', '_' and '.'")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise ConfigError(f"license: {self.license!r:.100}; expected an identifier such as apache-2.0, or other")
        named = self.license_name is not None and self.license_link is not None
        if (self.license == "other") != named or (self.license_name is None) != (self.license_link is None):
            raise ConfigError("license: `other` needs license_name and license_link, and only `other` has them")


@dataclass(frozen=True, kw_only=True)
class UploadFile:
    """A file that goes up."""

    name: str
    size: int
    sha256: str


def push(config: PushConfig) -> list[UploadFile]:
    """Write the card, upload the folder unless the run is dry, and return its files.

    Raises:
        RunError: when the folder is no encoder that may be shown, the eval is of another, or the hub refuses.
    """
    folder = Path(config.encoder)
    facts = _check_encoder(folder)
    names = _check_files(folder)
    publication = Publication(
        repository=config.repository,
        license=config.license,
        license_name=config.license_name,
        license_link=config.license_link,
        base_model=config.base_model or facts.get("base_model"),
    )
    card = model_card(folder, publication, None if config.eval is None else _load_eval(Path(config.eval), facts))
    write_text_atomic(folder / CARD_FILE, card)
    files = [
        UploadFile(name=name, size=(folder / name).stat().st_size, sha256=sha256_of_file(folder / name))
        for name in sorted({*names, CARD_FILE})
    ]
    if not config.dry_run:
        _upload(config, folder, card, files)
    return files


def _check_encoder(folder: Path) -> dict[str, Any]:
    """Return what the student run says of the encoder, which must be whole, exported, and no control."""
    settings = load_settings(folder)
    graphs = {GRAPH_FILES[variant]: checksum for variant, checksum in {"fp32": settings.sha256, **settings.variants}.items()}
    for name in ("modules.json", settings.tokenizer, *(f"{GRAPH_FOLDER}/{graph}" for graph in graphs)):
        if not (folder / name).is_file():
            raise RunError(f"{folder}: no {name}; expected an encoder folder of a student run; check the path")
    for graph, checksum in graphs.items():
        if sha256_of_file(folder / GRAPH_FOLDER / graph) != checksum:
            raise RunError(f"{folder}: {GRAPH_FOLDER}/{graph} is not the graph that was exported; export the encoder again")
    path = folder / GRAPH_FOLDER / PARITY_FILE
    try:
        accepted = json.loads(path.read_text(encoding="utf-8"))["accepted"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: not readable ({error}); expected that the graph ranks as torch does; export the encoder again") from error
    if accepted is not True:
        raise RunError(f"{path}: the graph was not accepted; expected one that ranks as torch does; export the encoder again")
    facts = load_fidelity(folder)
    if facts["shuffle_target"]:
        raise RunError(f"{folder}: a control, distilled from shuffled targets; expected a student that is for use; push another")
    return facts


def _check_files(folder: Path) -> list[str]:
    """Return the names of the folder's files, all of which must be plain data."""
    names = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise RunError(f"{folder}: {name}: a link; expected files of the folder's own; copy what it leads to")
        if path.is_dir():
            continue
        if path.suffix not in SUFFIXES and path.name not in NAMES:
            raise RunError(f"{folder}: {name}: expected only {', '.join((*SUFFIXES, *NAMES))}, which nothing runs; move it elsewhere")
        names.append(name)
    return names


def _load_eval(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    record, path = open_run(folder, "eval"), folder / "summary.json"
    target = record.get("target", {})
    for name, theirs in (("teacher_method", "method"), ("teacher_seed", "seed"), ("decoder_fingerprint", "decoder_fingerprint")):
        if target.get(theirs) != facts[name]:
            raise RunError(f"{folder}: of {theirs} {target.get(theirs)}, the encoder of {facts[name]}; expected an eval of this student")
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return summary
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not readable ({error}); expected the figures of an eval; run the eval stage again") from error


def _upload(config: PushConfig, folder: Path, card: str, files: list[UploadFile]) -> None:
    from huggingface_hub import HfApi, ModelCard

    api, public = HfApi(), False
    try:
        ModelCard(card).validate()  # by the hub, before anything is made there
        api.create_repo(config.repository, private=config.private, exist_ok=True)
        public = config.private and not api.model_info(config.repository).private
        if not public:
            api.upload_folder(
                repo_id=config.repository,
                folder_path=folder,
                allow_patterns=[glob.escape(file.name) for file in files],
                commit_message=f"influcoder {influcoder.__version__}: encoder {load_settings(folder).sha256[:12]}",
            )
    except Exception as error:  # which class a broken connection has depends on the client's release
        raise RunError(f"{config.repository}: not uploaded ({error}); check the token in HF_TOKEN, its rights, and the network") from error
    if public:
        raise RunError(f"{config.repository}: is public, and was to be private; nothing was uploaded; make it private, or choose another")
