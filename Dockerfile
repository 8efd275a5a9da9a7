# The agent's image: Debian 13 with the distribution's BCC, hvprobe, and nothing it does not need.
#
#   docker build -t hvprobe .          or, where there is only buildah: make image
#
# Two optional secrets are for networks that do not reach the public registries directly. Neither
# stays in the image:  pip-config  a pip.conf;  ca  certificates to trust, PEM.
ARG BASE=debian:trixie-slim

# What the distribution has: the interpreter, BCC, and the compiler libraries BCC is linked with.
FROM ${BASE} AS system
RUN apt-get -q update \
    && DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends \
        python3 python3-bpfcc \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb

# What the Python index has, and hvprobe itself, in an environment that sees the system's bcc.
FROM system AS build
RUN apt-get -q update \
    && DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends \
        ca-certificates python3-setuptools python3-venv
COPY requirements.lock /source/
RUN --mount=type=secret,id=pip-config,required=false \
    --mount=type=secret,id=ca,required=false \
    if [ -s /run/secrets/pip-config ]; then export PIP_CONFIG_FILE=/run/secrets/pip-config; fi; \
    if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    python3 -m venv --system-site-packages /opt/hvprobe \
    && /opt/hvprobe/bin/python -m pip install --quiet --no-cache-dir --no-deps --no-compile \
        --only-binary :all: --require-hashes --requirement /source/requirements.lock \
    # 64 MB: a second client, for asyncio, which nothing imports. The rest is compiled now, because
    # the agent cannot write byte code at run time.
    && rm -rf /opt/hvprobe/lib/python3*/site-packages/kubernetes/aio \
    && /opt/hvprobe/bin/python -m compileall -q /opt/hvprobe/lib
COPY . /source/
# After the rest, so that a change of hvprobe does not fetch everything again. No build isolation:
# setuptools is the distribution's, and nothing comes from the index. At the end pip removes itself.
RUN /opt/hvprobe/bin/python -m pip install --quiet --no-cache-dir --no-deps --no-index \
        --no-build-isolation /source \
    && /source/scripts/isolate.sh /opt/hvprobe/bin/hvprobe -IB \
    && /opt/hvprobe/bin/python -m pip check \
    && /opt/hvprobe/bin/python -m pip uninstall --quiet --yes pip \
    && rm -rf /opt/hvprobe/bin/activate* /opt/hvprobe/bin/Activate*

# Removes what only installs, what only people read, and every setuid bit. dpkg's database and the
# copyright files stay, and stay true: scanners and lawyers read them.
FROM system AS lean
RUN dpkg --purge --force-depends --force-remove-essential --force-remove-protected \
        apt debian-archive-keyring libapt-pkg7.0 sqv \
    && find /usr/share/doc -mindepth 2 ! -name copyright -delete \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
    && rm -rf /etc/apt /var/lib/apt /var/cache/* /var/log/* /tmp/* \
        /usr/share/info /usr/share/lintian /usr/share/locale /usr/share/man
COPY --from=build /opt/hvprobe /opt/hvprobe

# One layer, so that what was deleted above is not carried along below.
FROM scratch
ARG VERSION=unknown
ARG REVISION=unknown
COPY --from=lean / /
LABEL org.opencontainers.image.title="hvprobe" \
      org.opencontainers.image.description="Proves, from the kernel, which hypervisor every KubeVirt VM really runs on" \
      org.opencontainers.image.source="https://github.com/hvprobe/hvprobe" \
      org.opencontainers.image.documentation="https://github.com/hvprobe/hvprobe/blob/main/docs/operators.md" \
      org.opencontainers.image.licenses="Apache-2.0 AND (GPL-2.0-only OR Apache-2.0)" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/hvprobe/bin:/usr/sbin:/usr/bin \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1
# Root is required: a process that is not root gets a container's capabilities only through a program
# file that carries them, and tracefs admits only root.
USER 0:0
EXPOSE 9747
# For engines that use it; Kubernetes requests /healthz and /readyz itself. With another --listen or
# with TLS, pass --health-cmd.
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s CMD ["python3", "-Ic", \
    "import urllib.request as r; r.urlopen('http://127.0.0.1:9747/healthz', timeout=4)"]
ENTRYPOINT ["hvprobe"]
CMD ["agent"]
