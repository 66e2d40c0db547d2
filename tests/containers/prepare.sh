#!/bin/bash
# Runs a command beside a Docker Engine that has the images' base: `prepare.sh COMMAND…`
#
# Where no engine runs, one is started and ended again behind the command. Where the base cannot be pulled, it is made of
# Debian's packages, under the official name. Root, on Debian 12; ends with 77 where that cannot be.
# ARCHITECTURE=arm64: for that machine, under emulation. PODMAN=1: podman is wanted, too.
set -euo pipefail

machine=$(dpkg --print-architecture 2>/dev/null) || { echo "prepare.sh: only Debian is known here" >&2; exit 77; }
architecture=${ARCHITECTURE:-$machine}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/lockgate
name=python:3.11-slim-bookworm
engine=

finish() {
    rm -rf "${scratch:-}"
    [ -z "$engine" ] || { kill "$engine"; wait "$engine" 2>/dev/null || true; }
}
trap finish EXIT

missing=()
command -v dockerd >/dev/null || missing+=(docker.io iptables)
[ -x /usr/bin/docker-compose ] || missing+=(docker-compose) # version 1.29; the current one comes with the extra dev
# catatonit is what holds a pod
[ -z "${PODMAN:-}" ] || { command -v podman && command -v catatonit; } >/dev/null || missing+=(podman runc catatonit)
command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
command -v docker-registry >/dev/null || missing+=(docker-registry) # `lockgate deploy` pulls from it, with a login
command -v htpasswd >/dev/null || missing+=(apache2-utils)
if [ "$architecture" != "$machine" ]; then
    command -v "qemu-$(uname -m)-static" >/dev/null || missing+=(qemu-user-static binfmt-support arch-test)
fi
if ((${#missing[@]})); then
    [ "$(id -u)" = 0 ] || { echo "prepare.sh: not root, and these are missing: ${missing[*]}" >&2; exit 77; }
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
fi

if ! docker version >/dev/null 2>&1; then
    [ "$(id -u)" = 0 ] || { echo "prepare.sh: no Docker Engine answers, and only root can start one" >&2; exit 77; }
    mkdir -p "$cache"
    setsid dockerd >"$cache/dockerd.log" 2>&1 </dev/null & # a Ctrl-C is for the command
    engine=$!
    for _ in $(seq 100); do
        docker version >/dev/null 2>&1 && break
        kill -0 "$engine" 2>/dev/null || break
        sleep .3
    done
    if ! docker version >/dev/null 2>&1; then
        echo "prepare.sh: a Docker Engine does not start here: $(tail -1 "$cache/dockerd.log")" >&2
        exit 77
    fi
fi

[ "$architecture" = "$machine" ] || name=lockgate-base:$architecture

make_base() {
    if [ "$architecture" != "$machine" ]; then
        mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
        case $architecture in
            arm64) update-binfmts --enable qemu-aarch64 >&2 ;;
            armhf) update-binfmts --enable qemu-arm >&2 ;;
        esac
    fi

    # A month old at most: it holds Debian's corrections of security.
    base=$cache/base-$architecture.tar
    if [ -z "$(find "$base" -mtime -30 2>/dev/null)" ]; then
        mkdir -p "$cache"
        scratch=$(mktemp -d -p "$(test -w /dev/shm && echo /dev/shm || echo /tmp)")
        sources=/etc/apt/sources.list.d/debian.sources
        [ -e "$sources" ] || sources=/etc/apt/sources.list
        # As in the official image, pip and python3 are found in /usr/local/bin. Authorities that this machine trusts beyond
        # Debian's (a company's proxy) are trusted in the image, too.
        TMPDIR=$scratch mmdebstrap --variant=minbase --architectures="$architecture" \
            --dpkgopt=force-unsafe-io --aptopt='Acquire::Languages "none"' \
            --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
            --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
            --include=python3,python3-venv,python3-pip,ca-certificates,tzdata \
            --customize-hook='d="$1/usr/local/share/ca-certificates"; mkdir -p "$d"; cp /usr/local/share/ca-certificates/*.crt "$d/" 2>/dev/null || :; chroot "$1" update-ca-certificates' \
            --customize-hook='ln -sf /usr/bin/python3 "$1/usr/local/bin/python3"; ln -sf /usr/bin/python3 "$1/usr/local/bin/python"; rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED' \
            --customize-hook='printf "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n" > "$1/etc/pip.conf"; cd "$1/etc/apt/sources.list.d" && mv 0000*.sources debian.sources; rm -rf "$1"/var/cache/* "$1"/var/log/*' \
            bookworm "$scratch/base.tar" "$sources" >&2
        mv "$scratch/base.tar" "$base.new"
        mv "$base.new" "$base"
    fi
    if [ "$architecture" != "$machine" ]; then # `docker import` would call it an image for this one
        python3 "$(dirname "$0")/foreign_image.py" "$base" "$architecture" "$name" | docker load -q >&2
        return
    fi
    docker import -c 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin' -c 'ENV LANG=C.UTF-8' \
        -c 'CMD ["python3"]' "$base" "$name" >&2
}

if ! docker image inspect "$name" >/dev/null 2>&1; then
    [ "$architecture" = "$machine" ] && timeout 120 docker pull -q "$name" >&2 || make_base
fi
"$@"
