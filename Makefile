# make run    builds all there is and shows a virtual rack of three nodes boot
# make test   installs what is missing and runs every test
# make install, make uninstall   below PREFIX (/usr/local), with DESTDIR before it
# make deb    a Debian package in build/
# make test-long  runs the longer matrices too
# make bench  measures, prints a table and writes build/bench.json
# make bench-image  measures builds, sizes and unpacking beside Debian's tools; build/bench-image.json
# make bench-net  measures the boot protocols beside other servers; build/bench-net.json
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

GO     ?= go
BUILD  := build
BIN    := bin/dsas
INIT   := $(BUILD)/dsas-init
BB     := $(BUILD)/bb
GOSRC  := $(shell git ls-files -co --exclude-standard '*.go' 'roles/*' 'web/*' go.mod go.sum 2>/dev/null)

# Of the .deb: a tag's own, else one that comes before 0.1.0, in the order of commits.
DEBVERSION := $(shell git describe --exact-match --match 'v[0-9]*' 2>/dev/null | sed 's/^v//' | grep . || echo 0.1.0~git$$(TZ=UTC git log -1 --date=format-local:%Y%m%d%H%M%S --format=%cd.%h 2>/dev/null || echo 0))
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)

# What building, running and testing take from Debian. The server itself needs
# ipxe, pxelinux and syslinux-common; image builds mmdebstrap and zstd; the
# rest is the virtual rack and the tests' real peers.
PACKAGES := gcc libc6-dev iproute2 ipxe pxelinux syslinux-common mmdebstrap zstd xz-utils cpio kmod \
	qemu-system-x86 qemu-utils ovmf openipmi ipmitool openssh-client curl procps tcpdump iputils-ping
# The peers of make bench-net (some are already above).
BENCH_PACKAGES := kea-dhcp4-server dnsmasq-base nginx-light tftp-hpa atftp libwrap0 util-linux
# Peers that are unpacked, not installed: their packages would start them.
BENCH_PEERS := tftpd-hpa atftpd
TEST_PACKAGES := busybox qemu-system-arm qemu-efi-aarch64 chromium fonts-dejavu-core isc-dhcp-client udhcpc tftp-hpa atftp dnsmasq-base \
	e2fsprogs xfsprogs fdisk dhcpcd-base isc-dhcp-relay systemd binutils minisign skopeo
# Of the tests too, and unpacked, not installed: its package would start it.
TEST_PEERS := docker-registry

# One step installs what the next one needs.
.NOTPARALLEL:

.PHONY: all build deps test-deps run test check unit fuzz e2e test-long bench bench-image bench-net install uninstall deb clean
all: build

build: $(BIN) $(INIT) $(BB)

$(BIN): $(GOSRC)
	$(GO) build -trimpath -ldflags "-X main.version=$(VERSION)" -o $@ ./cmd/dsas

$(INIT): $(GOSRC)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o $@ ./cmd/dsas-init

$(BB): imagebuild/bb/go.mod imagebuild/bb/commands.txt imagebuild/bb/build.sh
	./imagebuild/bb/build.sh $@

# install NAMES: only what is missing, only as root
define install
	@missing=(); for p in $(1); do dpkg-query -W -f '$${db:Status-Abbrev}' $$p 2>/dev/null | grep -q '^ii' || missing+=($$p); done; \
	if (($${#missing[@]})); then \
	  if [ "$$(id -u)" != 0 ]; then echo "missing packages; run: sudo apt-get install --no-install-recommends $${missing[*]}" >&2; exit 1; fi; \
	  echo "installing: $${missing[*]}"; \
	  apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $${missing[*]} >/dev/null; fi
endef

# unpack NAMES: Debian packages into build/peers, which are not installed
define unpack
	@for p in $(1); do [ -e $(BUILD)/peers/$$p ] || { rm -rf $(BUILD)/peers/new; mkdir -p $(BUILD)/peers/new; \
	  (cd $(BUILD)/peers/new && { apt-get download -qq $$p || { apt-get update -qq && apt-get download -qq $$p; }; }) && dpkg -x $(BUILD)/peers/new/*.deb $(BUILD)/peers && rm -r $(BUILD)/peers/new && touch $(BUILD)/peers/$$p; }; done
endef

deps:
	$(call install,$(PACKAGES))

test-deps: deps
	$(call install,$(TEST_PACKAGES))
	$(call unpack,$(TEST_PEERS))

run: deps build
	$(BIN) lab run --state $(BUILD)/lab

test: test-deps build check unit fuzz e2e

check:
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "not gofmt-ed: $$out"; exit 1; }
	$(GO) vet ./...
	$(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

unit:
	DSAS_CI=1 $(GO) test -race -timeout 30m ./...

# Every Fuzz function of the module for a while; what fails is kept below the
# package's testdata/fuzz and is a case of the ordinary tests from then on.
FUZZTIME ?= 3s
fuzz:
	@grep -rlE --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r dir; do \
	  for f in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]*' $$dir/*_test.go | cut -d' ' -f2 | sort -u); do \
	    echo "$$dir $$f"; \
	    $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$dir >$(BUILD)/fuzz.out 2>&1 || { cat $(BUILD)/fuzz.out; exit 1; }; \
	  done; \
	done

# The rack: real firmware, a real kernel, the programs as built.
e2e: build
	DSAS_CI=1 DSAS_E2E=1 $(GO) test -count=1 -timeout 60m -v ./lab/e2e

# All tests, with those matrices that take too long for every change.
test-long: test-deps build check
	$(call install,lintian)
	DSAS_CI=1 DSAS_LONG=1 DSAS_E2E=1 $(GO) test -count=1 -p 1 -timeout 240m ./...

bench: deps build
	DSAS_BENCH_JSON=$(CURDIR)/$(BUILD)/bench.json $(GO) run ./lab/bench

bench-image: deps build
	$(call install,squashfs-tools)
	DSAS_BENCH_JSON=$(CURDIR)/$(BUILD)/bench-image.json $(GO) run ./lab/bench -only image,unpack

# Arguments: make bench-net ARGS="-only dhcp -quick"
bench-net: deps build
	$(call install,$(BENCH_PACKAGES))
	$(call unpack,$(BENCH_PEERS))
	@mkdir -p $(BUILD); $(GO) build -o $(BUILD)/benchnet ./lab/benchnet
	DSAS_BENCHNET_JSON=$(CURDIR)/$(BUILD)/bench-net.json $(BUILD)/benchnet $(ARGS)

# Below PREFIX (/usr/local), and DESTDIR in front of it for a package.
install uninstall: export DESTDIR := $(DESTDIR)
install uninstall: export PREFIX := $(or $(PREFIX),/usr/local)
install: build
	cmd/dsas/dist/install.sh install $(VERSION)

uninstall:
	cmd/dsas/dist/install.sh uninstall

deb: build
	rm -f $(BUILD)/dsas_*.deb
	cmd/dsas/dist/deb/build.sh $(DEBVERSION) $(BUILD)

clean:
	rm -rf $(BUILD) bin
