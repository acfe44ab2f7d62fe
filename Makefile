# make serve   set up what the gateway needs and start it (HOST and PORT change 127.0.0.1:8000)
# make test    set up everything, check the code, run the tests
# make triton  install the real Triton in an environment of its own, which "make test" tries too
# make check   formatting, lint, types, directions of imports
# make format  rewrite the code in the house's format
# make audit   vulnerabilities, bill of materials, licences and pins of what serves; EXTRAS=serve,...

VENV := .venv
BIN := $(VENV)/bin
TRITON := $(or $(TILESIGHT_TRITON_HOME),$(VENV)-triton)
AUDIT := $(VENV)-audit
EXTRAS ?= serve
COMMA := ,
AUDITED := $(AUDIT)/$(subst $(COMMA),-,$(EXTRAS))
PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)

.PHONY: serve test triton check format audit

serve: $(VENV)/.serve
	@exec $(BIN)/tilesight serve $(if $(HOST),--host '$(HOST)') $(if $(PORT),--port '$(PORT)')

# Triton's wheel is for Linux on x86-64, and a machine without a network has none at all.
test: check
	@$(MAKE) --no-print-directory triton || \
	    echo "NOTICE: Triton could not be installed: the tests that need it skip" >&2
	$(BIN)/pytest

triton: $(TRITON)/.made

check: $(VENV)/.all
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.all
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# Status 1: something is wrong. 3: the advisories could not be had, the rest is as it should be.
audit: $(AUDITED)/.made
	@$(AUDIT)/bin/python deploy/audit/audit.py $(AUDITED)/bin/python

# Each stamp is newer than what it was installed from, so a second start installs nothing.
$(VENV)/.serve: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install -c constraints.txt -e '.[serve]'
	@touch $@

$(VENV)/.all: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install -c constraints.txt -e '.[train,export,serve,geo,ray,openvino,load,otel,dev]'
	@touch $(VENV)/.serve $@

$(TRITON)/.made: tilesight/triton/requirements.txt | $(VENV)/.all
	TILESIGHT_TRITON_HOME='$(abspath $(TRITON))' $(BIN)/tilesight triton --install
	@touch $@

# Two environments, so that the tools of the audit are not among what they look at.
$(AUDITED)/.made: $(AUDIT)/.made pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear --without-pip $(AUDITED)
	$(AUDIT)/bin/python -m pip --python $(AUDITED)/bin/python install --quiet \
	    -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

$(AUDIT)/.made: deploy/audit/requirements.txt
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet -c constraints.txt -r deploy/audit/requirements.txt
	@touch $@

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	    { echo "Tilesight needs Python 3.11 or later, and $(PYTHON) is not that:" \
	    "name one, as in make PYTHON=/usr/bin/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@
