# One image for operator and gateway: `llmbudget operator`, `llmbudget gateway`. `make image` builds
# it; docs/image.md says how to pin the base and how to get the same digest twice.
#
# Any base with Python 3.11 or later and its venv module does, the same for both stages. A tag moves:
# whoever publishes images gives BASE_IMAGE by digest.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
# Bytecode is written once, below: by hash, since a timestamp would differ from build to build.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_CERT=/etc/ssl/certs/ca-certificates.crt
WORKDIR /src
COPY requirements.txt requirements-build.txt ./
# The secret, where it is given, holds the authorities of a network whose proxy opens TLS.
RUN --mount=type=secret,id=ca-certificates,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m venv /build \
 && python3 -m venv --without-pip /opt/llmbudget \
 && /build/bin/pip install --quiet --require-hashes --only-binary :all: -r requirements-build.txt \
 && /build/bin/pip --python /opt/llmbudget/bin/python install --quiet --no-compile \
        --require-hashes --only-binary :all: -r requirements.txt \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/llmbudget/lib
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
COPY scripts/sbom-base scripts/
# When the commit was made. In the bill of materials are this stage's Debian packages: it adds none to the
# base, which is the image's too.
ARG CREATED
RUN /build/bin/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist . \
 && /build/bin/pip --python /opt/llmbudget/bin/python install --quiet --no-compile --no-deps \
        --no-index --find-links dist llmbudget \
 && python3 -m compileall -q --invalidation-mode unchecked-hash \
        /opt/llmbudget/lib/python*/site-packages/llmbudget \
 && mkdir /opt/llmbudget/share \
 && echo "$CREATED" >/opt/llmbudget/share/created \
 && /build/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
        --mc-type application --output-file /opt/llmbudget/share/sbom.cdx.json /opt/llmbudget \
 && python3 scripts/sbom-base /opt/llmbudget/share/sbom.cdx.json

FROM ${BASE_IMAGE}
# First, since its content is this commit's alone: no later layer is taken from another commit's build.
COPY --from=build /opt/llmbudget /opt/llmbudget
LABEL org.opencontainers.image.title="LLM Budget" \
      org.opencontainers.image.description="LLM spending on Kubernetes as a quota that cannot be overrun" \
      org.opencontainers.image.licenses="Apache-2.0"
# By number, so that runAsNonRoot can be checked; there is no such user in the base, hence its name and
# home. Nothing but /tmp is written, and in a cluster that is a volume: the root filesystem may be
# read-only.
ENV PATH=/opt/llmbudget/bin:/usr/local/bin:/usr/bin:/bin USER=llmbudget HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["/opt/llmbudget/bin/llmbudget"]
