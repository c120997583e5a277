SUMMARY = "Runs signed machine-learning bundles on this device"
DESCRIPTION = "The agent of the Skerry fleet: it pulls signed model bundles, runs them, answers inference requests and ships telemetry."
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

# The tarball of a release, for the machine: put it beside this file, or on your mirror.
SKERRY_TARGET:aarch64 = "aarch64-unknown-linux-gnu"
SKERRY_TARGET:arm = "armv7-unknown-linux-gnueabihf"
SKERRY_TARGET:x86-64 = "x86_64-unknown-linux-gnu"
SRC_URI = "file://skerry-agent-${PV}-${SKERRY_TARGET}.tar.gz"
S = "${WORKDIR}/skerry-agent-${PV}-${SKERRY_TARGET}"
COMPATIBLE_HOST = "(aarch64|arm.*|x86_64).*-linux"

inherit systemd useradd

# It is stripped already.
INHIBIT_PACKAGE_STRIP = "1"
INHIBIT_PACKAGE_DEBUG_SPLIT = "1"
INHIBIT_SYSROOT_STRIP = "1"
INSANE_SKIP:${PN} = "already-stripped"

SYSTEMD_SERVICE:${PN} = "skerry-agent.service"
USERADD_PACKAGES = "${PN}"
USERADD_PARAM:${PN} = "--system --user-group --no-create-home --home-dir ${localstatedir}/lib/skerry --shell /sbin/nologin skerry-agent"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -D -m 0755 ${S}/bin/skerry-agent ${D}${bindir}/skerry-agent
    install -D -m 0644 ${S}/systemd/skerry-agent.service ${D}${systemd_system_unitdir}/skerry-agent.service
    # 32-bit ARM only: nothing becomes executable there.
    if [ -e ${S}/systemd/interpreter.conf ]; then
        install -D -m 0644 ${S}/systemd/interpreter.conf ${D}${systemd_system_unitdir}/skerry-agent.service.d/interpreter.conf
    fi
    install -D -m 0644 ${S}/skerry-agent.default ${D}${sysconfdir}/default/skerry-agent
    for page in ${S}/man/*.1; do
        install -D -m 0644 $page ${D}${mandir}/man1/$(basename $page)
    done
    install -D -m 0644 ${S}/completions/skerry-agent.bash ${D}${datadir}/bash-completion/completions/skerry-agent
    install -D -m 0644 ${S}/completions/_skerry-agent ${D}${datadir}/zsh/site-functions/_skerry-agent
    install -D -m 0644 ${S}/completions/skerry-agent.fish ${D}${datadir}/fish/vendor_completions.d/skerry-agent.fish
}

FILES:${PN} += "${systemd_system_unitdir}"
CONFFILES:${PN} = "${sysconfdir}/default/skerry-agent"
PACKAGES =+ "${PN}-completions"
FILES:${PN}-completions = "${datadir}/bash-completion ${datadir}/zsh ${datadir}/fish"
