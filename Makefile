# On a fresh Debian or Ubuntu machine, as root: `make run` runs hvprobe, `make test` tests it.
# On any Linux with Python 3.11 or later, as any user: `make lint test-unit`.

PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest

# In the order in which they run. vmtest is last because it boots machines, beside the other tests.
IMAGE_FOLDERS := tests/deploy tests/image tests/kubelet
TEST_FOLDERS := $(wildcard $(addprefix tests/, \
	unit server page monitoring cluster kernel prometheus live bench mutants) \
	$(if $(filter image,$(WITH)),$(IMAGE_FOLDERS)) vmtest)
C_FILES := $(sort $(wildcard ebpf/*.[ch] ebpf/*/*.c tests/*/*.c bench/*.c) $(shell find ebpf/include -name '*.h'))
SHELL_FILES := $(sort .ci/run $(wildcard scripts/*.sh tests/*/*.sh vmtest/*.sh))
WORKFLOW_FILES := $(sort $(wildcard .github/workflows/*.yml .github/dependabot.yml))
# Runs a linter of .venv and shows its output only if it fails, because zizmor reports success even
# with --quiet. Skips a linter whose package has no wheel for this machine.
LINT_WITH = if [ ! -x .venv/bin/$(1) ]; then \
	echo "lint: skipped $(1): its package has no wheel for $$(uname -m)"; else \
	report=$$(.venv/bin/$(1) $(2) 2>&1) || { printf '%s\n' "$$report" >&2; exit 1; }; fi

# Kernels that vmtest boots: versions separated by commas, or all.
HVPROBE_KERNELS ?= 6.1
export HVPROBE_KERNELS
# HVPROBE_REQUIRE=kernel,guests,cluster,prometheus,image,kubelet,helm turns skipped tests into failed
# ones. It reaches the tests through the environment.

.DEFAULT_GOAL := help
.PHONY: help install install-dev install-python run test demo lint format lock test-unit test-kernel test-kernels test-many-cpus test-preemption kernel-matrix \
	test-platforms \
	test-cluster test-server test-monitoring screenshots manifests release version image test-image image-cost bench bench-guard mutants clean

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## install what is missing and run the agent without a cluster (ARGS="..." for more flags)
	@scripts/install.sh --root run
	@echo "run: hvprobe agent --standalone $(ARGS)"
	@exec .venv/bin/hvprobe agent --standalone $(ARGS)

test: ## install what tests need, lint, and run all tests (WITH=image: and those of test-image)
	@scripts/install.sh --root run test $(filter image,$(WITH))
	@$(MAKE) --no-print-directory lint
	@echo "test: $(TEST_FOLDERS), kernels $(HVPROBE_KERNELS)"
	@exec $(PYTEST) $(TEST_FOLDERS) $(ARGS)

demo: ## start one accelerated and one emulated guest to look at, until Ctrl-C
	@scripts/install.sh run demo
	@exec $(PYTHON) scripts/demo.py

install: ## install what hvprobe needs: distribution packages, .venv, the project
	@scripts/install.sh run

install-dev: ## install what tests and linters need as well
	@scripts/install.sh run test

install-python: ## install what lint and unit tests need: .venv alone, without root
	@scripts/install.sh python

lint: install-python ## check style, types, layers, words, locks, C, shell and workflows
	@echo "lint: locks, vulnerabilities, ruff, mypy, import-linter, prose, clang-format, shellcheck, zizmor"
	@$(PYTHON) scripts/lock.py --check
	@$(PYTHON) scripts/audit.py
	@$(PYTHON) -m ruff check --quiet .
	@$(PYTHON) -m ruff format --quiet --check . || \
		{ echo "lint: files are not formatted (see above or run: make format)" >&2; exit 1; }
	@$(PYTHON) -m mypy --no-error-summary
	@report=$$(.venv/bin/lint-imports --no-cache 2>&1) || { echo "$$report" >&2; exit 1; }
	@$(PYTHON) scripts/prose.py
	@.venv/bin/clang-format --dry-run --Werror $(C_FILES)
	@$(call LINT_WITH,shellcheck,$(SHELL_FILES))
	@$(call LINT_WITH,zizmor,--offline --no-progress --quiet $(WORKFLOW_FILES))

format: install-python ## format Python and C, and fix what can be fixed
	@$(PYTHON) -m ruff format .
	@$(PYTHON) -m ruff check --fix --quiet .
	@.venv/bin/clang-format -i $(C_FILES)

# Does not install first, because the locks that would be installed are the ones to write.
lock: ## write the locks of Python packages from pyproject.toml (ARGS=--upgrade for newest versions)
	@[ -x .venv/bin/uv ] || scripts/install.sh python
	@$(PYTHON) scripts/lock.py $(ARGS)

test-unit: install-python ## tests that need no root, no distribution package and no kernel features
	@exec $(PYTEST) tests/unit $(ARGS)

test-kernel: install-dev ## tests with real hooks and real guests on this machine's kernel
	@exec $(PYTEST) tests/kernel $(ARGS)

test-kernels: export HVPROBE_KERNELS = all
test-kernels: install-dev ## the same on other kernels, booted in QEMU
	@exec $(PYTEST) vmtest $(ARGS)

test-many-cpus: export HVPROBE_MANY_CPUS = 1
test-many-cpus: install-dev ## kernel tests in a guest with as many possible CPUs as QEMU can emulate
	@exec $(PYTEST) vmtest/test_many_cpus.py $(ARGS)

test-preemption: export HVPROBE_PREEMPTION ?= all
test-preemption: export HVPROBE_REQUIRE = guests
test-preemption: install-dev ## kernel tests on a real-time kernel and with preempt=full, beside other users of BPF
	@exec $(PYTEST) vmtest/test_preemption.py $(ARGS)

kernel-matrix: export HVPROBE_MANY_CPUS = 1
kernel-matrix: export HVPROBE_PREEMPTION = all
kernel-matrix: export HVPROBE_KERNELS = all
kernel-matrix: export HVPROBE_REQUIRE = kernel,guests
kernel-matrix: install-dev ## run the kernel tests everywhere and write docs/kernels.md from it
	@mkdir -p build/test-kernels/host
	@$(PYTEST) tests/kernel --junitxml=build/test-kernels/host/junit.xml
	@$(PYTEST) vmtest
	@$(PYTHON) -m vmtest.support_matrix

test-platforms: export HVPROBE_PLATFORMS = all
test-platforms: export HVPROBE_REQUIRE = kernel,guests
test-platforms: install-dev ## run the agent under security modules and on restricted kernels, write docs/platforms.md
	@mkdir -p build/test-platforms/host
	@$(PYTEST) tests/kernel/test_other_vmms.py --junitxml=build/test-platforms/host/junit.xml
	@$(PYTEST) vmtest/test_platforms.py $(ARGS)
	@$(PYTHON) -m vmtest.platform_matrix

test-cluster: install-dev ## tests against an API server
	@exec $(PYTEST) tests/cluster $(ARGS)

test-server: install-dev ## tests of the HTTP server
	@exec $(PYTEST) tests/server $(ARGS)

test-monitoring: install-dev ## tests of rules, alerts and dashboard, and with a real Prometheus
	@exec $(PYTEST) $(wildcard tests/monitoring tests/prometheus) $(ARGS)

screenshots: install-dev ## draw the pictures of the docs: the pages in a real Chromium, and the live view
	@$(PYTHON) -m tests.support.screenshots $(ARGS)
	@$(PYTHON) scripts/screenshots.py

dashboards: install-python ## write the dashboards for Grafana and Perses from deploy/monitoring/dashboard.toml
	@$(PYTHON) scripts/dashboards.py $(ARGS)

# KUBECTL names the kubectl that renders. Without it this is the one of the tests, so that every
# machine writes the same bytes.
manifests: install-python ## write dist/install-*.yaml for kubectl apply -f (IMAGE=name@sha256:digest)
	@kubectl=$${KUBECTL:-$$($(PYTHON) -m tests.support.helm_tools kubectl)} && \
		$(PYTHON) scripts/manifests.py $(ARGS) --kubectl "$$kubectl" '$(IMAGE)'

# ARGS: --snapshot for a tree without the version's tag, --images none or amd64,arm64.
release: install-python ## write a release into dist (IMAGE=name@sha256:digest, or name; make image first)
	@kubectl=$${KUBECTL:-$$($(PYTHON) -m tests.support.helm_tools kubectl)} && \
		$(PYTHON) scripts/release.py $(ARGS) --kubectl "$$kubectl" '$(IMAGE)'

# Without .venv any Python 3.11 will do, because this needs no package. Variables of the environment that
# happen to have these names change nothing.
version: ## print the version, or set it everywhere (SET=1.2.3), or date its changelog (DATE=2026-12-31)
	@$(or $(wildcard $(PYTHON)),python3) scripts/version.py $(ARGS) \
		$(if $(findstring command,$(origin SET)),'$(SET)') \
		$(if $(findstring command,$(origin DATE)),--date '$(DATE)')

image: ## build the container image and its bill of materials, in build/image (ARCH=arm64 for such machines)
	@scripts/install.sh run test image
	@scripts/build-image.sh localhost/hvprobe:latest$(if $(ARCH),-$(ARCH))

# Architectures of the image that test-image builds and runs.
test-image: export HVPROBE_IMAGES ?= amd64,arm64
test-image: export HVPROBE_KERNELS := $(if $(filter file,$(origin HVPROBE_KERNELS)),all,$(HVPROBE_KERNELS))
test-image: ## build the image, run it as each DaemonSet would and in a real cluster, check deploy/
	@scripts/install.sh --root run test image
	@exec $(PYTEST) $(IMAGE_FOLDERS) $(ARGS)

image-cost: ## measure what docs/operators.md says the image costs
	@scripts/install.sh --root run test image
	@exec $(PYTHON) -m bench.image_cost

bench: ## measure hvprobe beside its peers on this machine, write docs/benchmarks.md from it
	@scripts/install.sh --root run test bench
	@exec $(PYTHON) -m bench.run $(ARGS)

bench-guard: ## fail where hvprobe got worse than the stored results say (ratios, in a minute)
	@scripts/install.sh --root run test bench
	@exec $(PYTEST) bench/test_guard.py $(ARGS)

mutants: install-dev ## put defects in and see which tests notice, write docs/mutants.md from it
	@exec nice $(PYTHON) -m mutants.run $(ARGS)

clean: ## remove what make made
	@echo "clean: .venv, builds and caches"
	@rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
	@find ebpf probes tests bench vmtest mutants scripts -name __pycache__ -type d -exec rm -rf {} +
