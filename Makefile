# Each target works alone on a fresh machine with Python 3.11–3.13 and make.
PYTHON ?= python3
BIN := .venv/bin
HOME_OF_RUNS := $(CURDIR)/run/prefect
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: help run up demo test screenshots test-slow lint format bench bench-gates bench-gates-truth bench-seeds bench-pacs bench-adapt bench-forgetting bench-kill bench-s3 bench-upload \
	bench-drift bench-drift-speed bench-harm bench-flights bench-flights-stream bench-train-overhead bench-train-layout bench-train-input \
	bench-train-peers bench-serve bench-chaos bench-postgres bench-many lock clean
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

# The stamp is newer than the lock once everything in it is installed: the next call starts at once.
.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Everfresh needs Python 3.11, 3.12 or 3.13, got %d.%d. Say which with: make PYTHON=python3.12" % sys.version_info[:2])'
	@echo "Installing into .venv: about 5 GB, a minute or more the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --quiet -e .
	@touch $@

run: .venv/.installed ## see the whole loop work on real digits, two to three minutes
	@PREFECT_HOME="$${PREFECT_HOME:-$(HOME_OF_RUNS)}" $(BIN)/everfresh demo run/digits

up: .venv/.installed ## Prefect server, two workers and an S3 server on this machine; Ctrl-C ends all
	@$(BIN)/everfresh up

demo: .venv/.installed ## beside `make up`: drift arrives and is answered, with nobody touching it
	@$(BIN)/everfresh demo-live

test: .venv/.installed ## the whole suite, ten minutes on 2 cores
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

screenshots: .venv/.installed ## the pictures of the Prefect UI in docs/, as the tests see it
	@EVERFRESH_SCREENSHOTS=$(CURDIR)/docs OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 0 -m slow tests/integration/test_ui_operations.py

test-slow: .venv/.installed ## processes killed and raced, some minutes more
	@OMP_NUM_THREADS=1 $(BIN)/pytest -m slow

lint: .venv/.installed ## ruff, mypy, and a validator for each kind of file in infra/
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python infra/lint.py

format: .venv/.installed ## let ruff rewrite
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.installed ## what an idle tick costs against an empty flow
	$(BIN)/python benchmarks/idle_tick.py

bench-seeds: .venv/.installed ## the demo over 10 seeds, half an hour
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/demo_seeds.py

bench-pacs: .venv/.installed ## photo, art painting, cartoon over 5 seeds; needs PACS_DATA and SQUEEZENET
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/pacs_stream.py

bench-forgetting: .venv/.installed ## fine-tuning against plain training and two kinds of replay, an hour; needs PACS_DATA and SQUEEZENET
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/forgetting.py

bench-adapt: .venv/.installed ## the ladder against retraining from pretrained on everything, hours; needs PACS_DATA and SQUEEZENET
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/adapt.py

bench-harm: .venv/.installed ## accuracy estimated without labels over the grid of shifts; needs DRIFT_DATA and SQUEEZENET
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/drift_harm.py

bench-kill: .venv/.installed ## kill -9 at random moments of the demo, then compare with an undisturbed run
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/kill_demo.py

bench-s3: .venv/.installed ## digits and PACS with the store on S3 and in a folder: the same bytes; PACS needs PACS_DATA and SQUEEZENET
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/same_on_s3.py

bench-upload: .venv/.installed ## a proven upload to S3 against boto3's own, 5 MB to 1 GB
	$(BIN)/python benchmarks/upload.py

bench-drift: .venv/.installed ## false alarms and power of drift detection against the literature, an hour; needs DRIFT_DATA and SQUEEZENET
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/drift_quality.py

bench-drift-speed: .venv/.installed ## our drift tests against Evidently's preset, 10,000 rows × 542 columns
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/drift_speed.py

bench-flights: .venv/.installed ## drift of the flights of 2013 by month, beside the harm it does; needs FLIGHTS
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/flights_drift.py

bench-flights-stream: .venv/.installed ## flights of 2013 through a network of one's own, frozen and kept fresh; needs FLIGHTS
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/flights_stream.py

bench-train-overhead: .venv/.installed ## our training loop against a bare one, step by step
	$(BIN)/python -W ignore benchmarks/train_overhead.py

bench-train-layout: .venv/.installed ## the setting that is chosen by itself against every one of the grid
	$(BIN)/python -W ignore benchmarks/train_layout.py

bench-train-input: .venv/.installed ## training from JPEGs in shards against the bound of decoding; needs PACS_DATA
	$(BIN)/python -W ignore benchmarks/train_input.py

bench-train-peers: .venv/.installed ## the same fine-tune in other trainers; needs PACS_DATA, SQUEEZENET and the extra peers
	$(BIN)/python -W ignore benchmarks/train_peers.py

bench-gates: .venv/.installed ## how often each gate errs on synthetic truth, two minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/gates.py

bench-gates-truth: .venv/.installed ## which of 120 challengers of known quality go live, half an hour; needs PACS_DATA and SQUEEZENET
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/gates_truth.py

bench-serve: .venv/.installed ## a service under load through 50 releases, 20 rollbacks and a minute without the store
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/serve_refresh.py

bench-chaos: .venv/.installed ## SIGKILL of both workers and the server in the middle of retrainings, an hour
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/stack_chaos.py

bench-postgres: .venv/.installed ## the live demo on PostgreSQL, the server killed in the middle; needs PostgreSQL's programs
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/stack_postgres.py

bench-many: .venv/.installed ## 20 pipelines for half an hour, and 100 in one run
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/many_pipelines.py

lock: .venv/.installed ## resolve anew, hashes and no host names
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header --extra dev pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header --extra images -c requirements.lock pyproject.toml -o infra/images/requirements.lock

clean: ## remove the environment and all runs
	rm -rf .venv run build *.egg-info
