# Everything a developer types. Needs Python 3.11 with venv, and make; gcc for the compiled broker.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find src -name '*.py' -o -name py.typed) pyproject.toml setup.py
# The same question setup.py asks: is there a compiler, and Python's header for it?
HAVE_CC := $(shell printf '\043include <Python.h>\n' | $(or $(CC),cc) -E -I"$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')" - >/dev/null 2>&1 && echo yes)
PYTEST_ARGS ?=

.PHONY: run test test-compiled test-interpreted test-peers check format bench outage tunnel-losses fuzz mutate lock docs image image-arm64 \
  wheels sbom built-images test-containers manifests kubernetes-tools checkov clean

run: $(VENV)/installed ## the demo: a gateway, devices and a cloud on this machine
	$(BIN)/lockgate up --demo

ifeq ($(HAVE_CC),yes)
test: test-compiled test-interpreted ## the whole suite, on the compiled and on the interpreted broker
else
test: test-interpreted
	@echo "lockgate: no C compiler with Python's header here, so only the INTERPRETED broker was tested"
endif

test-compiled: $(VENV)/installed
	EXPECT_COMPILED=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

test-interpreted: $(VENV)/locked
	EXPECT_COMPILED=0 PYTHONPATH=$(CURDIR)/src $(BIN)/python -m pytest $(PYTEST_ARGS)

test-peers: ## installs the foreign MQTT programs the interoperability tests talk to
	tests/interop/install_peers.sh

check: $(VENV)/locked ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --scripts-are-modules packaging/image/*.py

format: $(VENV)/locked
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/installed ## us and Debian's mosquitto, side by side
	$(BIN)/python -m benchmarks

MESSAGES ?= 1000000
outage: $(VENV)/installed ## a million messages while the cloud is away, on one core and in 256 MB, with kills and jumps of the clock
	$(BIN)/python -m benchmarks.outage $(MESSAGES)

DEVICES ?= 1000
tunnel-losses: $(VENV)/installed ## devices behind a tunnel whose connections, connector and edges are killed, and what they notice
	$(BIN)/python -m tests.support.tunnel_crowd $(DEVICES)

FUZZ_PACKETS ?= 10000000
FUZZ_CASES ?= 3000
FUZZ_SECONDS ?= 60
FAULT_ROUNDS ?= 200
fuzz: $(VENV)/installed ## ten million packets of two clients; differential, guided by coverage, properties, faults
	$(BIN)/python -m tests.fuzz --packets $(FUZZ_PACKETS)
	DIFFERENTIAL_CASES=$(FUZZ_CASES) $(BIN)/python -m pytest tests/fuzz/test_differential.py -p no:timeout -s
	for target in decoder properties topics websocket proxy; do \
	  PYTHONPATH=$(CURDIR)/src $(BIN)/python -m tests.fuzz.guided $$target -max_total_time=$(FUZZ_SECONDS) -timeout=10 || exit 1; \
	done
	PYTHONPATH=$(CURDIR)/src $(BIN)/python -m pytest tests/properties --hypothesis-profile=drawn -p no:timeout $(PYTEST_ARGS)
	FAULT_ROUNDS=$(FAULT_ROUNDS) $(BIN)/python -m pytest tests/faults -k test_broker_ -s $(PYTEST_ARGS)

mutate: $(VENV)/locked ## what the tests of mqtt/ and broker/ do not notice; ARGS="--sample 300 --seed 1" for a quick look
	PYTHONHASHSEED=0 PYTHONPATH=$(CURDIR)/src $(BIN)/python -m tests.mutation $(ARGS)

# --- container images ----------------------------------------------------------------------------------------------------

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/lockgate/__init__.py)
IMAGE ?= lockgate
DOCKER := docker
BUILD_IMAGE = $(DOCKER) build -q -f packaging/Dockerfile --build-arg VERSION=$(VERSION) \
  --build-arg REVISION=$(shell git rev-parse HEAD 2>/dev/null) $(if $(BASE),--build-arg BASE=$(BASE)) $(if $(PLATFORM),--platform $(PLATFORM)) \
  $(if $(EPOCH),--build-arg SOURCE_DATE_EPOCH=$(EPOCH)) $(if $(OFFLINE),--build-arg OFFLINE=1 --network none)
EPOCH = $(shell git log -1 --format=%ct 2>/dev/null)
PREPARED := tests/containers/prepare.sh

image: ## the images lockgate:VERSION and lockgate:VERSION-small; OFFLINE=1 after `make wheels`; BASE=… for another base
	$(PREPARED) $(MAKE) --no-print-directory built-images

built-images:
	$(BUILD_IMAGE) -t $(IMAGE):$(VERSION)-small --target broker-small .
	$(BUILD_IMAGE) -t $(IMAGE):$(VERSION) --target gateway .

# By BuildKit, which /usr/bin/docker has: to the classic builder `FROM scratch` is always of its own machine.
image-arm64: ## the images for arm64 under emulation, and the functional check; half an hour where nothing is prepared
	ARCHITECTURE=arm64 $(PREPARED) sh -ec '$(MAKE) --no-print-directory built-images VERSION=$(VERSION)-arm64 \
	  BASE=lockgate-base:arm64 PLATFORM=linux/arm64 DOCKER="env DOCKER_BUILDKIT=1 /usr/bin/docker" && \
	  LOCKGATE_IMAGE=$(IMAGE):$(VERSION)-arm64 PYTHONPATH=$(CURDIR)/src $(BIN)/python -m pytest tests/containers \
	  -k "documented_line or given_up_for_good" $(PYTEST_ARGS)'

wheels: ## wheels/: what `make image OFFLINE=1` installs without a network
	$(PREPARED) sh -ec '$(BUILD_IMAGE) -t $(IMAGE)-wheels --target wheels . && rm -rf wheels && \
	  made=$$(docker create $(IMAGE)-wheels) && docker cp $$made:/wheels wheels && docker rm $$made'

sbom: ## dist/: what the images are made of, in CycloneDX
	mkdir -p dist
	$(PREPARED) sh -ec 'for kind in "" -small; do \
	  made=$$(docker create $(IMAGE):$(VERSION)$$kind) && \
	  docker cp $$made:/opt/lockgate/sbom.cdx.json dist/$(IMAGE)-$(VERSION)$$kind.cdx.json && docker rm -v $$made; done'

test-containers: $(VENV)/locked ## the images, on a Docker Engine, where one can run; REBUILD=1: are two builds the same?
	@PODMAN=1 $(PREPARED) sh -ec '$(MAKE) --no-print-directory built-images && \
	  LOCKGATE_IMAGE=$(IMAGE):$(VERSION) LOCKGATE_REBUILD=$(REBUILD) PYTHONPATH=$(CURDIR)/src \
	  $(BIN)/python -m pytest tests/containers $(PYTEST_ARGS)' \
	  || { status=$$?; [ $$status = 77 ] && echo "lockgate: no container was tested here" || exit $$status; }

# --- Kubernetes ------------------------------------------------------------------------------------------------------------

CHART := packaging/kubernetes/chart/lockgate
HELM ?= $(or $(wildcard build/tools/helm),helm)

kubernetes-tools: ## build/tools: helm and kubernetes-validate, with which the tests of packaging/kubernetes try it
	PYTHON=$(PYTHON) tests/packaging/install_tools.sh

manifests: ## packaging/kubernetes/*.yaml, which are what the chart gives
	for made in lockgate:broker lockgate-gateway:gateway; do \
	  values=$(CHART)/ci/$${made#*:}-values.yaml; \
	  { echo "# Made by \`make manifests\` of the chart and $$values; see docs/how-to/kubernetes.md."; \
	    $(HELM) template lockgate $(CHART) --namespace lockgate --skip-tests -f $$values; \
	  } > packaging/kubernetes/$${made%:*}.yaml || exit 1; \
	done

checkov: kubernetes-tools ## what checkov thinks of the manifests and the Dockerfile; not in the tests, it takes minutes to install
	PYTHON=$(PYTHON) tests/packaging/install_tools.sh checkov
	build/tools/checkov/bin/checkov --config-file packaging/kubernetes/checkov.yaml

lock: ## write requirements.lock anew from pyproject.toml; needs pip-tools
	pip-compile --quiet --generate-hashes --all-extras --allow-unsafe --strip-extras --no-header --no-emit-index-url \
	  --no-emit-find-links --no-emit-trusted-host --upgrade -o requirements.lock pyproject.toml

docs: $(VENV)/locked ## the generated pages of docs/reference
	PYTHONPATH=$(CURDIR)/src $(BIN)/python -m lockgate.config.reference > docs/reference/configuration.md
	PYTHONPATH=$(CURDIR)/src $(BIN)/python -m lockgate.config.options_table > docs/reference/mosquitto-options.md
	PYTHONPATH=$(CURDIR)/src $(BIN)/python -m tests.interop.scenarios.differences > docs/reference/differences.md
	PYTHONPATH=$(CURDIR)/src $(BIN)/python -m tests.conformance.page > docs/reference/conformance.md

clean:
	rm -rf $(VENV) build dist wheels .mypy_cache .ruff_cache .pytest_cache .hypothesis .demo tests/interop/node_modules
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -rf src/*.egg-info

# --- environments: locked holds what the lock file says, installed the package on top of it ------------------------

$(VENV)/locked: requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	touch $@

# A wheel, never an editable install: a compiled module beside the sources would hide every later edit of them.
$(VENV)/installed: $(VENV)/locked $(SOURCES)
	rm -rf build/lib* build/bdist*
	LOCKGATE_REQUIRE_COMPILED=$(if $(HAVE_CC),1,0) \
	  $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --force-reinstall .
	touch $@
