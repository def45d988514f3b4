#!/usr/bin/env bash
BASE_PYTHON="${BASE_PYTHON:-}"  # interpreter to make .venv with; empty: the first of Python 3.11 and 3.12 found
FLASH_ATTN="flash-attn==2.8.3.post2"  # only installed where a CUDA GPU and its compiler are

# Makes .venv beside this file with everything the project needs. A second run does nothing; one that was interrupted is
# taken up where it stopped, and packages it left half-installed are installed again.
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")"

stamp=.venv/.setup-done flash_stamp=.venv/.flash-attn-tried
wanted="$( (pwd -P; cat requirements.txt requirements-demo.txt pyproject.toml setup.sh) | sha256sum | cut -d ' ' -f 1)"
is_supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'
venv_python=.venv/bin/python

say() { echo "[setup] $*"; }

fail() {
    echo "setup.sh: error: $*" >&2
    exit 2
}

find_python() {
    local candidates=(python3.11 python3.12 python3 python) candidate without_venv=""
    [[ -z $BASE_PYTHON ]] || candidates=("$BASE_PYTHON")
    for candidate in "${candidates[@]}"; do
        # Run it: a shim on the PATH can name a version that isn't there.
        "$candidate" -c "$is_supported" 2>/dev/null || continue
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            BASE_PYTHON="$candidate"
            return
        fi
        without_venv="$candidate"
    done
    [[ -z $without_venv ]] \
        || fail "$without_venv has no venv module; install it (Debian, Ubuntu: python3-venv) and run setup.sh again"
    fail "no Python 3.11 or 3.12 found (tried ${candidates[*]});" \
        "install one, or name it: BASE_PYTHON=/path/to/python bash setup.sh"
}

# Succeeds if .venv can be built upon. A package without all its files is forgotten (its metadata go), so that pip
# installs it again; without a whole pip there is nothing to build upon.
venv_is_usable() {
    [[ -x $venv_python ]] && grep -qF "$PWD/.venv" .venv/bin/activate 2>/dev/null \
        && "$venv_python" -c "$is_supported" 2>/dev/null && "$venv_python" - <<'EOF'
import csv, pathlib, shutil, sys, sysconfig

site = pathlib.Path(sysconfig.get_path("purelib"))


def is_whole(info):
    # pip writes INSTALLER and RECORD last.
    if not (info / "INSTALLER").is_file() or not (info / "RECORD").is_file():
        return False
    with open(info / "RECORD", encoding="utf-8", newline="") as record:
        sizes = {row[0]: row[2] for row in csv.reader(record) if row[2]}
    return all((site / name).is_file() and (site / name).stat().st_size == int(size) for name, size in sizes.items())


infos = {info: is_whole(info) for info in site.glob("*.dist-info")}
if not any(whole and info.name.startswith("pip-") for info, whole in infos.items()):
    sys.exit(1)
for path in [*(info for info, whole in infos.items() if not whole), *site.glob("~*")]:
    shutil.rmtree(path)
EOF
}

# A GPU and its compiler, for which flash-attn wasn't tried yet: .venv may have been made on a machine without.
wants_flash_attn() {
    [[ ! -f $flash_stamp ]] && command -v nvcc && nvidia-smi -L \
        && "$venv_python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'
}

if [[ -f $stamp && "$(cat "$stamp")" == "$wanted" ]] && "$venv_python" -c 'import realsr_r1' 2>/dev/null \
    && ! wants_flash_attn >/dev/null 2>&1; then
    say ".venv is up to date"
    exit 0
fi
rm -f "$stamp"

if ! venv_is_usable; then
    [[ ! -L .venv ]] || fail ".venv is a link to $(readlink -f .venv), and making it anew would empty that folder;" \
        "remove the link"
    find_python
    say "making .venv with $("$BASE_PYTHON" --version)"
    "$BASE_PYTHON" -m venv --clear .venv || fail "$BASE_PYTHON -m venv failed (see above)"
fi

pip() { "$venv_python" -m pip --disable-pip-version-check -qq "$@"; }  # errors only

say "installing the packages of requirements.txt (several GB: some minutes)"
pip install --no-compile -r requirements.txt & installing=$!
while sleep 15; kill -0 "$installing" 2>/dev/null; do  # pip's own bars say nothing of the whole
    say "$(du -sm .venv | cut -f 1) MB installed"
done
wait "$installing" \
    || fail "installing requirements.txt failed (see above); run setup.sh again to go on"

say "installing the page's packages (requirements-demo.txt)"
pip install --no-compile --no-deps -r requirements-demo.txt \
    || fail "installing requirements-demo.txt failed (see above); run setup.sh again to go on"

# facexlib, which pyiqa asks for, brings a second OpenCV that writes over the headless one and needs a display's
# libraries.
is_headless='import cv2, re, sys; sys.exit(not re.search(r"GUI: +NONE", cv2.getBuildInformation()))'
if ! "$venv_python" -c "$is_headless" 2>/dev/null; then
    say "putting the headless OpenCV back"
    pip install --no-compile --no-deps --force-reinstall "$(grep '^opencv-python-headless==' requirements.txt)" \
        || fail "installing OpenCV failed (see above); run setup.sh again to go on"
fi

# Once, by all cores: many containers set PYTHONDONTWRITEBYTECODE, and then every start of every process would compile anew
# what it imports. Some packages hold templates that don't compile.
say "compiling"
"$venv_python" -m compileall -q -j 0 "$("$venv_python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
    >/dev/null 2>&1 || true

say "installing realsr-r1 itself (editable)"
pip install --no-deps --no-build-isolation -e . || fail "installing the package failed (see above)"

if wants_flash_attn >/dev/null 2>&1; then
    say "installing $FLASH_ATTN for this GPU (it may have to be compiled: up to an hour)"
    pip install --no-build-isolation "$FLASH_ATTN" \
        || echo "[setup] warning: flash-attn could not be installed; flash_attention_2 will fall back to sdpa" >&2
    touch "$flash_stamp"
fi

echo "$wanted" > "$stamp"
say "done in $SECONDS s"
