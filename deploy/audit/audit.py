"""What `make audit` says of the packages that serve: advisories, bill of materials, licences, pins.

Ends with 0 where nothing is wrong, 1 where something is, and 3 where nothing is wrong so far but
the advisories of some packages could not be had: an audit that was not made is not one that passed.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageMetadata, distributions
from pathlib import Path
from typing import Any

WRONG, NOT_ASKED = 1, 3
# The project is no package of the index, so nobody has advisories on it.
OURSELVES = "tilesight"
# Licences that ask for more than their text to be kept: whoever ships the image reads these first.
_WATCHED = re.compile(r"\b[AL]?GPL|MPL|EPL|CDDL|SSPL|BUSL|Commons-Clause|NVIDIA|Proprietary", re.I)


@dataclass
class Report:
    """How many packages were asked about, and a line for each matter that was found."""

    asked: int = 0
    wrong: list[str] = field(default_factory=list)
    unasked: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        """The exit status."""
        return WRONG if self.wrong else NOT_ASKED if self.unasked else 0


def advisories(answer: Mapping[str, Any]) -> Report:
    """What pip-audit's JSON says of each package.

    pip-audit itself counts a package that it could not ask about as one without a fault.
    """
    report = Report()
    for package in answer["dependencies"]:
        name = package["name"]
        if reason := package.get("skip_reason"):
            if name != OURSELVES:
                report.unasked.append(f"{name}: {reason}")
            continue
        report.asked += 1
        for advisory in package.get("vulns", []):
            names = ", ".join([advisory["id"], *advisory.get("aliases", [])])
            fixed = ", ".join(advisory.get("fix_versions", [])) or "no release yet"
            report.wrong.append(f"{name} {package['version']}: {names}; fixed in {fixed}")
    return report


def drift(installed: Mapping[str, str], pins: Mapping[str, str]) -> list[str]:
    """A line for each installed package that is not at the version of constraints.txt."""
    return [
        f"{name} {version}: {'no line in constraints.txt' if pin is None else f'pinned at {pin}'}"
        for name, version in sorted(installed.items())
        if (pin := pins.get(name)) != version
    ]


def licences(packages: Path) -> dict[str, str]:
    """The licence of each package in the folder as its metadata names it, else "unknown"."""
    found = sorted(distributions(path=[str(packages)]), key=lambda one: one.name.lower())
    return {f"{one.name} {one.version}": _licence(one.metadata) for one in found}


def _licence(metadata: PackageMetadata) -> str:
    """The expression, which is the newest way to say it, else the classifiers, else the field."""
    classifiers = [
        one.rpartition(" :: ")[2]
        for one in metadata.get_all("Classifier", [])
        if one.startswith("License :: ")
    ]
    # The old field sometimes holds the whole text.
    (first, *_) = (metadata.get_all("License") or ["unknown"])[0].strip().splitlines()
    return (
        (metadata.get_all("License-Expression") or [""])[0] or "; ".join(classifiers) or first[:80]
    )


def canonical(name: str) -> str:
    """The name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(path: Path) -> dict[str, str]:
    """Versions by canonical name."""
    lines = path.read_text(encoding="utf-8").split()
    return {canonical(name): pin for name, _, pin in (line.partition("==") for line in lines)}


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def ask_advisories(packages: Path) -> Report:
    """The advisories on what is installed in the folder."""
    options = ["--format", "json", "--progress-spinner", "off", "--skip-editable"]
    done = _run(sys.executable, "-m", "pip_audit", "--path", packages, *options)
    try:
        return advisories(json.loads(done.stdout))
    except json.JSONDecodeError:
        said = done.stderr.strip().splitlines() or ["pip-audit said nothing"]
        return Report(unasked=[f"all packages: {said[-1]}"])


def installed_in(python: Path) -> dict[str, str]:
    """Versions by canonical name, without ourselves."""
    done = _run(sys.executable, "-m", "pip", "--python", python, "list", "--format", "json")
    done.check_returncode()
    found = {canonical(one["name"]): one["version"] for one in json.loads(done.stdout)}
    found.pop(OURSELVES, None)
    return found


def write_sbom(python: Path, project: Path, path: Path) -> Mapping[str, Any]:
    """The CycloneDX document of the environment, which is also written to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options: list[str | Path] = ["--pyproject", project, "--output-file", path]
    tool: list[str | Path] = [sys.executable, "-m", "cyclonedx_py", "environment", python]
    done = _run(*tool, *options, "--output-reproducible")
    if done.returncode:
        sys.exit(done.stderr)
    document: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def _table(of: Mapping[str, str]) -> str:
    width = max(map(len, of), default=0)
    return "".join(f"{name:{width}}  {licence}\n" for name, licence in of.items())


def _say(title: str, lines: list[str], limit: int = 10) -> None:
    print(f"{title}: {len(lines) or 'none'}")
    for line in lines[:limit]:
        print(f"  {line}")
    if len(lines) > limit:
        print(f"  ... and {len(lines) - limit} more")


def main() -> int:
    """Prints the report, writes the two lists, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", type=Path, help="interpreter of the serving environment")
    parser.add_argument("--project", type=Path, default=Path("pyproject.toml"))
    parser.add_argument("--constraints", type=Path, default=Path("constraints.txt"))
    parser.add_argument("--out", type=Path, default=Path("build"), help="folder for the two lists")
    given = parser.parse_args()

    sbom = write_sbom(given.python, given.project, given.out / "sbom.json")
    (packages,) = given.python.parent.parent.glob("lib/python3*/site-packages")
    found = licences(packages)
    (given.out / "licences.txt").write_text(_table(found), encoding="utf-8")
    print(f"{given.out / 'sbom.json'}: {len(sbom['components'])} components, CycloneDX")
    print(f"{given.out / 'licences.txt'}: {len(found)} licences")
    noted = [f"{name}: {one}" for name, one in found.items() if _WATCHED.search(one)]
    _say("licences that ask for more than their text to be kept", noted)
    _say("licence unknown", [name for name, one in found.items() if one == "unknown"])

    report = ask_advisories(packages)
    _say(f"known vulnerabilities of {report.asked} packages", report.wrong, limit=50)
    check = _run(sys.executable, "-m", "pip", "--python", given.python, "check")
    broken = check.stdout.strip().splitlines() if check.returncode else []
    _say("broken requirements", broken)
    drifted = drift(installed_in(given.python), read_pins(given.constraints))
    _say("not at the version of constraints.txt", drifted, limit=50)
    report.wrong += broken + drifted
    if report.unasked:
        _say("NOTICE: advisories could not be had for", report.unasked, limit=3)
        print("This audit is not complete: make it again where the advisory service is reached.")
    return report.status


if __name__ == "__main__":
    sys.exit(main())
