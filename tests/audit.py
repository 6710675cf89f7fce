"""Known vulnerabilities of what is installed, by pip-audit: ``python -m tests.audit``.

Exits with 1 if something was found. Where pip-audit or its service can't be reached, or knows none of the packages, a
line says that nothing was audited, and the exit code is 0.
"""

from __future__ import annotations

import json
import subprocess
import sys


def main() -> int:
    options = ["--format", "json", "--skip-editable", "--progress-spinner", "off", "--timeout", "15"]
    try:
        command = [sys.executable, "-m", "pip_audit", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    except subprocess.TimeoutExpired:
        print("not audited: the service did not answer within 300 seconds")
        return 0
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        print(f"not audited: pip-audit gave no result ({lines[-1][:200]})")
        return 0
    known = [package for package in packages if "skip_reason" not in package]
    found = [(package, flaw) for package in known for flaw in package["vulns"]]
    for package, flaw in found:
        print(
            f"{package['name']} {package['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or '-'}"
        )
    if not known:
        print(f"not audited: the service knows none of the {len(packages)} packages (is a mirror in between?)")
    else:
        print(f"{len(known)} of {len(packages)} packages audited, {len(found)} known vulnerabilities")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
