#!/bin/sh
# Installs the foreign MQTT programs the interoperability tests talk to: Debian's mosquitto and its clients, mqtt.js,
# openssl, curl and systemd-analyze; PostgreSQL and InfluxDB for the sinks (NATS, S3 and Kafka are Python packages, in the
# extra `dev`); pebble for ACME; and, for root, what makes the disks and networks whose power and wires the fault tests cut.
set -eu
cd "$(dirname "$0")"
PATH="$PATH:/usr/sbin:/sbin"

packages=
command -v mosquitto >/dev/null || packages="$packages mosquitto"
command -v mosquitto_pub >/dev/null || packages="$packages mosquitto-clients"
command -v node >/dev/null || packages="$packages nodejs"
command -v npm >/dev/null || packages="$packages npm"
command -v openssl >/dev/null || packages="$packages openssl"
command -v curl >/dev/null || packages="$packages curl"
command -v influxd >/dev/null || packages="$packages influxdb"
command -v pebble >/dev/null && command -v pebble-challtestsrv >/dev/null || packages="$packages pebble"
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || packages="$packages postgresql"
command -v systemd-analyze >/dev/null || packages="$packages systemd"
if [ "$(id -u)" = 0 ]; then # disks and networks of our own need root, so nobody else needs these
    command -v mkfs.ext4 >/dev/null || packages="$packages e2fsprogs"
    command -v mkfs.xfs >/dev/null || packages="$packages xfsprogs"
    command -v losetup >/dev/null || packages="$packages mount"
    command -v ip >/dev/null || packages="$packages iproute2"
    command -v iptables >/dev/null || packages="$packages iptables"
    command -v sysctl >/dev/null || packages="$packages procps"
fi
if [ -n "$packages" ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "not root: install these Debian packages first:$packages" >&2
        exit 1
    fi
    apt-get update -q
    # RUNLEVEL=1 keeps the package from starting a broker of its own on port 1883.
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $packages
fi
npm ci --no-audit --no-fund --ignore-scripts
