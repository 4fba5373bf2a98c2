# `make book` builds the site, `make test` runs what a change can break, `make check` what takes seconds, `make test-all`
# everything; each makes its own .venv first, once. `make clean-clone` is for whoever is about to submit.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := .ci/install $(BIN)/python

.PHONY: book test check test-all test-rest style audit crate pdf clean-clone clean

book: .venv/installed
	$(BIN)/jupyter-book build book/ -W -n --keep-going
	@echo "open book/_build/html/index.html"

# as many processes as processors, and so one thread in each
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: style
	$(PYTEST) -m "not thorough"

# for every save: at most a minute
check: style
	$(PYTEST) -m quick

# shapes and types that lib/ states are checked at run time, too
test-all: style
	CHECK_SHAPES=1 $(PYTEST)

# what `make test` leaves out
test-rest: .venv/installed-test
	CHECK_SHAPES=1 $(PYTEST) -m thorough

style: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check

# README's two commands on a machine that has nothing of ours: a new clone of what is committed, an empty home
clean-clone: SHELL := bash
clean-clone:
	folder=$$(mktemp -d) && git clone --quiet . $$folder/clone && mkdir $$folder/home && cd $$folder/clone \
	&& export HOME=$$folder/home XDG_CACHE_HOME= && time $(MAKE) book && time $(MAKE) test && rm -rf $$folder

# a software bill of materials, and what is known against any of it; asks the services of the Python package index.
# Strict: a package that nothing is known of is not one without faults
audit:
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet pip-audit cyclonedx-bom
	.venv/audit/bin/cyclonedx-py requirements constraints.txt --output-reproducible --output-file sbom.json
	@.venv/audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement constraints.txt \
	|| { echo "audit: faults are known, or the service could not be asked about a package: see above" >&2; exit 1; }

# the report of at most ten pages, and metadata.yaml for ReScience C, from what the pages show; notebooks out of date run first
pdf: .venv/installed
	$(BIN)/python -m book.article article.pdf

# results, and the book where it is built, as one zip file that says what made what; the validator asks w3id.org
crate: .venv/installed
	$(INSTALL) --editable '.[book,crate]'
	rm -f crate.zip
	$(BIN)/python -m book.crate crate.zip
	$(PYTHON) -m venv .venv/validator
	.venv/validator/bin/python -m pip install --quiet roc-validator
	.venv/validator/bin/rocrate-validator -y validate --no-paging --profile-identifier ro-crate-1.2 crate.zip

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit("python3 is %d.%d, expected 3.11 to 3.13: make PYTHON=python3.12 ..." % v[:2])'
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable '.[book]'
	touch $@

.venv/installed-test: .venv/installed
	$(INSTALL) --editable '.[book,test]'
	touch $@

clean:
	rm -rf .venv book/_build book/executed
