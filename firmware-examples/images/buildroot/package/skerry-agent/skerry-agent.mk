################################################################################
#
# skerry-agent
#
################################################################################

SKERRY_AGENT_VERSION = 0.1.0
ifeq ($(BR2_aarch64),y)
SKERRY_AGENT_TARGET = aarch64-unknown-linux-gnu
else ifeq ($(BR2_x86_64),y)
SKERRY_AGENT_TARGET = x86_64-unknown-linux-gnu
else
SKERRY_AGENT_TARGET = armv7-unknown-linux-gnueabihf
endif
# The tarball of a release, in this folder. Its line of SHA256SUMS belongs into skerry-agent.hash beside it.
SKERRY_AGENT_SOURCE = skerry-agent-$(SKERRY_AGENT_VERSION)-$(SKERRY_AGENT_TARGET).tar.gz
SKERRY_AGENT_SITE = $(BR2_EXTERNAL_SKERRY_PATH)/package/skerry-agent
SKERRY_AGENT_SITE_METHOD = file
SKERRY_AGENT_LICENSE = Apache-2.0

define SKERRY_AGENT_INSTALL_TARGET_CMDS
	$(INSTALL) -D -m 0755 $(@D)/bin/skerry-agent $(TARGET_DIR)/usr/bin/skerry-agent
	$(INSTALL) -D -m 0644 $(@D)/skerry-agent.default $(TARGET_DIR)/etc/default/skerry-agent
endef

define SKERRY_AGENT_INSTALL_INIT_SYSTEMD
	$(INSTALL) -D -m 0644 $(@D)/systemd/skerry-agent.service $(TARGET_DIR)/usr/lib/systemd/system/skerry-agent.service
	if [ -e $(@D)/systemd/interpreter.conf ]; then \
		$(INSTALL) -D -m 0644 $(@D)/systemd/interpreter.conf \
			$(TARGET_DIR)/usr/lib/systemd/system/skerry-agent.service.d/interpreter.conf; \
	fi
endef

# name, uid, group, gid, password, home, shell, groups, comment
define SKERRY_AGENT_USERS
	skerry-agent -1 skerry-agent -1 * /var/lib/skerry - - Skerry agent
endef

$(eval $(generic-package))
