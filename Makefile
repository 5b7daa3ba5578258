# SPDX-License-Identifier: GPL-2.0
# Front door: every target calls a script, which holds the logic and explains itself.

.DEFAULT_GOAL := help

help: ## this list
	@scripts/help $(firstword $(MAKEFILE_LIST))

setup: ## install what is missing (other targets do it themselves)
	@scripts/setup
run: ## the main job: a libvirt guest's traffic through rvhost_net, in a virtual machine
	@scripts/e2e/run
vm: ## a shell in that machine, module loaded, libvirt running
	@scripts/e2e/shell
modules: ## build rvhost_net.ko (for another kernel: KDIR=<its build folder>)
	@scripts/module build
install: ## install rvhost_net.ko for the running kernel (or KDIR's)
	@scripts/module install
test: ## everything, in steps; ends with "N passed, N failed" (DEBUG=1: debug kernel)
	@scripts/test all
test-long: ## the rounds in their long form, with each QEMU that can be had; more random calls (MODULE=c)
	@scripts/test long
check: ## linters and host tests only
	@scripts/test check
kunit: ## the suites that run inside a kernel
	@scripts/kunit
rounds: ## what VMMs do with a running device: migration, hot-plug, ... (ROUNDS='...': some; MODULE=c)
	@MODULE=$(MODULE) scripts/e2e/rounds $(ROUNDS)
vtest: ## the user-space client against the module (MODULE=c: against C vhost_net)
	@scripts/vtest $(or $(MODULE),rust)
test-backends: ## what queues run on, with guests on it, and steering (short in 'test'; DEBUG=1: debug kernel)
	@scripts/test backends
abi: ## compare with C vhost_net, behaviour by behaviour; writes Documentation/compat.rst (MODULE=c|rust: only list)
	@scripts/abi $(MODULE)
hostile: ## attack the module, threat by threat, on the debug kernel (THREATS='BC A9 kill': parts; MODULE=c)
	@scripts/hostile $(if $(filter c,$(MODULE)),c,full) $(THREATS)
hostile-quick: ## the short form
	@scripts/hostile quick
soak: ## attack it at random for HOURS=n
	@scripts/hostile soak $(HOURS)
coverage: ## which lines of the core its tests reach
	@scripts/coverage
coverage-module: ## which lines of the module the cases reach, on all its threads (DEBUG=1: with faults)
	@scripts/driver-coverage
trace: ## see each tracepoint fire through ftrace, and run the tracing recipes
	@scripts/trace/test
tool: ## build the rvhost command: build/tool/rvhost, with man pages and completions
	@scripts/tool build
install-tool: ## install it under /usr/local
	@scripts/tool install
test-observe: ## counters and their cost, the rvhost command, tracing recipes, where threads run
	@scripts/observe all
doc: ## rustdoc, Documentation/ as HTML, the header's comments: build/doc (warnings are errors)
	@scripts/doc
bench-quick: ## instructions per packet, against C vhost_net and our own baseline (BASELINE=write)
	@scripts/bench/instructions
bench-counters: ## what the counters cost, in instructions per packet
	@scripts/bench/counters
bench: ## measure against C vhost_net; writes Documentation/performance.rst
	@scripts/bench/run
where: ## print KSRC, KOBJ, BZIMAGE, MODULE as shell assignments
	@scripts/module where
kernel: ## build the kernel only (DEBUG=1: the debug kernel)
	@scripts/kernel/build $(if $(DEBUG),debug,host)
rust-analyzer: ## write rust-project.json for editors
	@scripts/module analyzer
clean: ## remove what was built here; the cache stays
	@scripts/clean
clean-cache: ## remove the cache: kernels, source, tools
	@scripts/clean cache

.PHONY: help setup run vm modules install test test-long check kunit rounds vtest test-backends abi hostile hostile-quick soak coverage coverage-module trace tool install-tool test-observe doc bench-quick bench-counters bench where kernel rust-analyzer clean clean-cache
