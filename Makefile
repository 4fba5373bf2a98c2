# `make book` builds the site, `make test` runs all tests, `make check` those that take seconds; each makes its own
# .venv first, once.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: book test check style audit crate clean

book: .venv/installed
	$(BIN)/jupyter-book build book/ -W -n --keep-going
	@echo "open book/_build/html/index.html"

PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: style
	$(PYTEST)

# for every save
check: style
	$(PYTEST) -m "not slow"

style: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check

# a software bill of materials, and what is known against any of it; asks the services of the Python package index.
# Strict: a package that nothing is known of is not one without faults
audit:
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet pip-audit cyclonedx-bom
	.venv/audit/bin/cyclonedx-py requirements constraints.txt --output-reproducible --output-file sbom.json
	@.venv/audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement constraints.txt \
	|| { echo "audit: faults are known, or the service could not be asked about a package: see above" >&2; exit 1; }

# results, and the book where it is built, as one zip file that says what made what; the validator asks w3id.org
crate: .venv/installed
	$(PIP) --editable '.[book,crate]'
	rm -f crate.zip
	$(BIN)/python -m book.crate crate.zip
	$(PYTHON) -m venv .venv/validator
	.venv/validator/bin/python -m pip install --quiet roc-validator
	.venv/validator/bin/rocrate-validator -y validate --no-paging --profile-identifier ro-crate-1.2 crate.zip

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit("python3 is %d.%d, expected 3.11 to 3.13: make PYTHON=python3.12 ..." % v[:2])'
	$(PYTHON) -m venv .venv
	$(PIP) --editable '.[book]'
	touch $@

.venv/installed-test: .venv/installed
	$(PIP) --editable '.[book,test]'
	touch $@

clean:
	rm -rf .venv book/_build book/executed
