"""Looks up the known vulnerabilities of every package that is installed beside this one, with pip-audit.

    python scripts/audit.py

Ends with 1 if there are any. Where no service of vulnerabilities can be reached, or it knows none of the packages, it
says so and ends with 0: nothing was found out then.
"""

import json
import subprocess
import sys

SECONDS = 300


def main() -> int:
    flags = ["--local", "--skip-editable", "--format", "json", "--progress-spinner=off"]
    try:
        command = [sys.executable, "-m", "pip_audit", *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        packages = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        print(f"not audited: the service did not answer within {SECONDS} s")
        return 0
    except ValueError:
        print(f"not audited: {(done.stderr.strip().splitlines() or ['pip-audit said nothing'])[-1]:.160}")
        return 0
    known = [package for package in packages if "skip_reason" not in package]
    if not known:
        print(f"not audited: the service that was reached knows none of the {len(packages)} packages")
        return 0
    bad = [package for package in known if package["vulns"]]
    for package in bad:
        for found in package["vulns"]:
            fixed = ", ".join(found["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {found['id']}, fixed in {fixed}")
    print(f"{len(bad)} of {len(known)} packages have known vulnerabilities; {len(packages) - len(known)} are not known")
    return bool(bad)


if __name__ == "__main__":
    raise SystemExit(main())
