# The image in which cibuildwheel builds the wheels: Debian 12 with what the build needs, and the interpreters of the
# manylinux images. From the root of the repository:
#   docker build -t deepinfer-wheel -f deploy/wheel.dockerfile . && cibuildwheel --platform linux
# The image has tags by date alone: the newest is wanted, for its interpreters.
# hadolint ignore=DL3006
FROM quay.io/pypa/manylinux_2_28_x86_64 AS interpreters
FROM debian:12
COPY --from=interpreters /opt /opt
COPY tools/packages.txt /tmp/packages.txt
# hadolint ignore=DL3008,SC2046
RUN apt-get update && \
    apt-get install -y --no-install-recommends $(sed -n 's/^build //p' /tmp/packages.txt) && \
    rm -rf /var/lib/apt/lists/*
ENV AUDITWHEEL_PLAT=manylinux_2_36_x86_64
