# The commands of this project. Each says what it needs if something is missing.
.PHONY: help demo book ui test test-compose test-systemd test-deb test-drivers test-versions test-clients test-bouncer test-psql test-long test-suites fuzz bench bench-pool bench-events bench-held instructions build dist deb sbom fmt lint deny reference check-docs install-test clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

demo: ## a Patroni cluster and three routers on this machine, until Ctrl-C
	@scripts/demo run

ui: ## the page of the HTTP port, from ui/ into the sources of the router
	@scripts/ui

build: ## the release binary
	cargo build --release --locked

dist: ## the release binary (or TRUNKLINE=FILE) as images take it: dist/trunkline, without what only debuggers read
	$(if $(TRUNKLINE),,cargo build --release --locked --quiet)
	install -D -m 755 $(or $(TRUNKLINE),target/release/trunkline) dist/trunkline
	strip --strip-debug dist/trunkline

deb: build ## a Debian package in dist/, docs/packages.md
	@scripts/deb

sbom: ## the libraries that the program consists of: dist/trunkline.cdx.json
	@mkdir -p dist
	@scripts/sbom > dist/trunkline.cdx.json
	@scripts/sbom --check dist/trunkline.cdx.json

install-test: ## what the tests need
	@scripts/install-packages test

fmt: ## format the code
	cargo fmt

lint: ## formatting and lints, as `make test` checks them
	cargo fmt --check
	cargo clippy --all-targets --all-features --locked -- -D warnings

deny: ## licences, banned crates, sources, vulnerabilities
	@scripts/deny

test: ## everything, about 40 minutes on two processors
	@scripts/test

test-compose: ## the demo in containers, as docs/demo.md walks through it
	@scripts/test-compose

test-systemd: ## the unit config/trunkline.service under a real systemd
	@scripts/test-systemd

test-deb: ## the Debian package under a real systemd: installed, upgraded under load, removed, purged
	@cargo build --locked --quiet
	@scripts/test-deb

test-drivers: ## drivers with pools of their own before pools of the router, also those that CI leaves out
	@scripts/test-drivers

test-versions: ## PostgreSQL 14 to 19, Patroni 3.0 to 4.1, etcd 3.4 and 3.5: docs/compatibility.md
	@scripts/test-versions

test-clients: ## drivers of many languages before a real cluster, directly and through the router: docs/compatibility.md
	@scripts/test-clients

test-bouncer: ## the column of PgBouncer in the table of isolation; PGBOUNCER names the program
	@scripts/install-packages test $(if $(PGBOUNCER),,bench)
	cargo test --locked --test it pooling::bouncer -- --include-ignored --nocapture
	cargo test --locked --test it console_pgbouncer::the_program -- --include-ignored --nocapture

# Of other Debian releases, as `make test-versions` unpacks them, and of this one.
PSQL ?= $(shell echo $(wildcard $(shell scripts/install-packages --cache-dir)/debian-*/root/usr/lib/postgresql/*/bin/psql /usr/lib/postgresql/*/bin/psql) | tr ' ' ':')

test-psql: ## the console before psql 15 to 19; PSQL names other programs, with colons between
	@scripts/install-packages test versions
	TRUNKLINE_TEST_PSQL="$(PSQL)" cargo test --locked --test it console_views::psql -- --nocapture

fuzz: ## every parser of bytes from outside, a minute each
	@scripts/fuzz

test-long: ## what takes longer, before a release
	@scripts/test --long

test-suites: ## suites of PostgreSQL and of drivers: direct, and through each mode of the pools
	@scripts/suites

bench: ## pgbench side by side with a bare forwarder, HAProxy and PgBouncer
	@scripts/install-packages bench
	@scripts/bench

bench-pool: ## pooling side by side with PgBouncer
	@scripts/install-packages bench
	@scripts/bench-pool

bench-events: ## what clients notice of failovers, side by side with HAProxy and PgBouncer
	@scripts/install-packages bench
	@scripts/bench-events

bench-held: ## what clients cost while they are held, and how soon they go on
	@scripts/install-packages bench
	@scripts/bench-held

instructions: ## instructions per transaction and per login, compared with benches/instructions.json
	@scripts/install-packages test
	@scripts/instructions

reference: ## write the configuration's tables in docs/, its JSON Schema in config/, and the manual pages in packaging/man/
	TRUNKLINE_WRITE_REFERENCE=1 cargo test --locked --lib -- config::tests::schema cli::man

book: ## the book of docs/ in dist/book, and all its links
	@scripts/book

check-docs: ## the documentation builds without a warning
	RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' cargo doc --locked --no-deps --document-private-items

clean: ## what was built, and the demo's certificates
	cargo clean
	rm -rf dist fuzz/target fuzz/corpus fuzz/artifacts
	git clean -fdXq certs
