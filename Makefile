# Builds and installs the library for C and what speaks C: `make install PREFIX=/usr/local`, and `make uninstall` likewise.
# DESTDIR is put before every path, as packages want it. What is installed finds itself by its own place and may be moved.

PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
BINDIR ?= $(PREFIX)/bin

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
# before 1.0 a minor version may break its callers, so it is part of the name: as build.rs says it
SONAME := libdialoguellm.so.$(word 1,$(subst ., ,$(VERSION))).$(word 2,$(subst ., ,$(VERSION)))
PKGCONFIG := $(DESTDIR)$(LIBDIR)/pkgconfig
CMAKE := $(DESTDIR)$(LIBDIR)/cmake/dialoguellm

# What is installed; without them named, what cargo builds.
LIBRARY ?= target/release/libdialoguellm.so
STATIC ?= target/release/libdialoguellm.a
COMMAND ?= target/release/dialoguellm

.PHONY: all install uninstall cargo

all: $(LIBRARY) $(STATIC) $(COMMAND)

# cargo knows what is old
target/release/libdialoguellm.so target/release/libdialoguellm.a target/release/dialoguellm: cargo

cargo:
	cargo build --release

install: all
	install -d $(DESTDIR)$(LIBDIR) $(DESTDIR)$(INCLUDEDIR) $(DESTDIR)$(BINDIR) $(PKGCONFIG) $(CMAKE)
	install -m 755 $(LIBRARY) $(DESTDIR)$(LIBDIR)/libdialoguellm.so.$(VERSION)
	ln -sf libdialoguellm.so.$(VERSION) $(DESTDIR)$(LIBDIR)/$(SONAME)
	ln -sf $(SONAME) $(DESTDIR)$(LIBDIR)/libdialoguellm.so
	install -m 644 $(STATIC) $(DESTDIR)$(LIBDIR)/libdialoguellm.a
	install -m 644 include/dialoguellm.h include/dialoguellm.hpp $(DESTDIR)$(INCLUDEDIR)
	install -m 755 $(COMMAND) $(DESTDIR)$(BINDIR)
	sed 's/@VERSION@/$(VERSION)/' include/dialoguellm.pc.in > $(PKGCONFIG)/dialoguellm.pc
	sed 's/@SONAME@/$(SONAME)/' include/dialoguellm-config.cmake.in > $(CMAKE)/dialoguellm-config.cmake
	sed 's/@VERSION@/$(VERSION)/' include/dialoguellm-config-version.cmake.in > $(CMAKE)/dialoguellm-config-version.cmake

uninstall:
	rm -f $(DESTDIR)$(LIBDIR)/libdialoguellm.a $(DESTDIR)$(LIBDIR)/libdialoguellm.so $(DESTDIR)$(LIBDIR)/$(SONAME) $(DESTDIR)$(LIBDIR)/libdialoguellm.so.$(VERSION)
	rm -f $(DESTDIR)$(INCLUDEDIR)/dialoguellm.h $(DESTDIR)$(INCLUDEDIR)/dialoguellm.hpp $(DESTDIR)$(BINDIR)/dialoguellm
	rm -f $(PKGCONFIG)/dialoguellm.pc
	rm -rf $(CMAKE)
