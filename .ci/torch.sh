# How torch is installed, for `setup` and `package`, which read this file: $venv is the environment, $TORCH what to give to pip instead of the choice made
# here, $newest whether the newest is wanted. They run in the top folder.
constraints=.ci/constraints.txt
torch=$(sed -n 's/^torch==//p' "$constraints")
cpu_index=https://download.pytorch.org/whl/cpu
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_USER=0 PIP_NO_INPUT=1

say() { printf 'setup: %s\n' "$*"; }
stop() { printf 'setup: %s\n' "$@" >&2; exit 1; }

# pip's own words are long: keep its errors, and of the rest what it downloads, so that a slow network shows.
install() {
    "$venv/bin/python" -m pip install --progress-bar off "$@" |
        awk '/^ *Downloading .*\(.*B\)/ { sub(/^ *Downloading */, "  "); print; fflush() }'
}

no_torch() {
    stop "could not install $1 (pip says why above). If the network failed, run 'make setup' again." \
        "The build of PyPI will do too, but is large (2.5 GB with CUDA): make setup TORCH='torch==$torch'; another index: make setup TORCH='torch==$torch --index-url URL'"
}

nvidia() { nvidia-smi -L >/dev/null 2>&1 || [ -e /proc/driver/nvidia/version ]; }

# Linux wheels on PyPI are the CUDA build, several GB with its libraries: take those only where there is a GPU.
install_torch() {
    if [ -n "${TORCH:-}" ]; then
        say "installing $TORCH"
        install $TORCH || no_torch "$TORCH"  # unquoted: a requirement and pip's options
    elif [ -n "$newest" ] && install_newest_torch; then
        return
    elif have="$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null)" &&
        [ "${have%%+*}" = "$torch" ]; then
        say "torch $have is there already"
    elif [ "$(uname -s)" != Linux ]; then
        say "installing torch $torch"
        install "torch==$torch" || no_torch "torch $torch"
    elif nvidia; then
        say "installing torch $torch for the NVIDIA GPU (several GB)"
        install "torch==$torch" || no_torch "torch $torch"
    else
        say "installing torch $torch for the CPU (about 200 MB; no NVIDIA GPU found)"
        # a mirror of one's own may have it; PyPI has not, and says so at once
        install --retries 1 "torch==$torch+cpu" 2>/dev/null ||
            install --index-url "$cpu_index" "torch==$torch+cpu" || no_torch "torch $torch from $cpu_index"
    fi
}
