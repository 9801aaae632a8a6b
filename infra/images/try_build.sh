#!/usr/bin/env bash
# Build an image without a container engine's daemon and without an image registry, and run `everfresh --help` in it.
#   apt-get install -y buildah debootstrap;  infra/images/try_build.sh [cpu|cuda]      as root, on Debian; 40 GB of disk
# The base is made here, Debian's own Python in place of python:3.11-slim; all else is the Dockerfile as it stands. torch
# comes from the lock, from the same place as all packages: TORCH_INDEX= is the empty one. This machine's settings for pip
# and its certificates are seen while building, and are in no layer.
set -euo pipefail
cd "$(dirname "$0")/../.."
kind=${1:-cpu}
release=bookworm
work=${TRY_BUILD_IN:-$(mktemp -d)}
mkdir -p "$work"
trap '[ -n "${TRY_BUILD_KEEP:-}" ] || rm -rf "$work"' EXIT
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
buildah() { command buildah --root "$work/storage" --runroot "$work/run" "$@"; }

if [ ! -e "$work/base.tar" ]; then
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates $release "$work/base" > "$work/debootstrap.log"
  rm -rf "$work"/base/var/cache/apt/archives/*.deb "$work"/base/var/lib/apt/lists/*
  tar -C "$work/base" -cf "$work/base.tar" . && rm -rf "$work/base"
fi
base=$(buildah from scratch)
buildah add --quiet "$base" "$work/base.tar" / > /dev/null
buildah commit --quiet --rm "$base" localhost/everfresh-base > /dev/null

printf 'native-tls = true\n' > "$work/uv.toml"
torch=(); [ "$kind" = cuda ] || torch=(--build-arg TORCH_INDEX=)
seen=(--volume /etc/ssl/certs:/etc/ssl/certs:ro --volume "$work/uv.toml:/etc/uv/uv.toml:ro")
[ ! -e /etc/pip.conf ] || seen+=(--volume /etc/pip.conf:/etc/pip.conf:ro)
buildah bud --quiet --format docker --network host "${seen[@]}" --build-arg BASE=localhost/everfresh-base \
  "${torch[@]}" --file "infra/images/$kind.Dockerfile" --tag "everfresh:try-$kind" .

made=$(buildah from "everfresh:try-$kind")
trap 'buildah rm "$made" > /dev/null; [ -n "${TRY_BUILD_KEEP:-}" ] || rm -rf "$work"' EXIT
buildah run "$made" -- everfresh --help
buildah run "$made" -- python3 -c "from importlib.resources import files; print(len(list(files('everfresh.infra').joinpath('work_pools').iterdir())), 'work pools')"
buildah run "$made" -- sh -c 'test "$(id -u)" = 10001 && ! touch /opt/everfresh/x 2>/dev/null && echo "not root; cannot write to its own code"'
buildah run "$made" -- sh -c 'touch "$EVERFRESH_CACHE/x" "$PREFECT_HOME/x" && ls /opt/everfresh/work_pools'
buildah run "$made" -- everfresh demo /home/everfresh/demo | tail -5
buildah images
