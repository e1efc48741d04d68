# One master in a container; docs/OPERATIONS.md, "In a container", has the words around it.
#
#   docker build -t tunneltcp .
#   docker run -d --network host -v /etc/tunneltcp:/etc/tunneltcp:ro -v tunneltcp:/var/lib/tunneltcp tunneltcp
#   docker run ... tunneltcp --role client --config /etc/tunneltcp/client.json --server vps.example.com

# 3.12 and newer share more memory between processes (OPERATIONS.md); the tests run on 3.11.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim AS build
WORKDIR /source
COPY requirements.lock ./
# Wheels of what the lock pins, with its hashes; from here on nothing is downloaded, and so
# there is one version of each.
# hadolint ignore=DL3013
RUN pip wheel --no-cache-dir --disable-pip-version-check --require-hashes \
      --requirement requirements.lock --wheel-dir /wheels \
    && pip install --no-cache-dir --disable-pip-version-check --root-user-action ignore \
      --no-index --find-links /wheels hatchling editables
COPY pyproject.toml README.md LICENSE ./
COPY tunneltcp ./tunneltcp
# Only what running needs goes into the environment: neither pip nor what built the wheel.
# hadolint ignore=DL3013
RUN pip wheel --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation \
      --wheel-dir /wheels . \
    && python -m venv --without-pip /opt/tunneltcp/venv \
    && pip --python /opt/tunneltcp/venv/bin/python install --no-cache-dir --disable-pip-version-check \
      --root-user-action ignore --no-index --find-links /wheels tunneltcp

FROM python:${PYTHON}-slim
# Numbers, so that "runAsNonRoot" and the owner of a mounted folder can be checked.
RUN groupadd --gid 10001 tunneltcp \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/tunneltcp \
      --shell /usr/sbin/nologin tunneltcp \
    && install -d -o tunneltcp -g tunneltcp -m 0700 \
      /run/tunneltcp /var/lib/tunneltcp /var/log/tunneltcp
COPY --from=build /opt/tunneltcp/venv /opt/tunneltcp/venv
ENV PATH=/opt/tunneltcp/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /
VOLUME ["/var/lib/tunneltcp", "/var/log/tunneltcp"]
# The master is process 1: it handles TERM, INT and HUP, and reaps what is orphaned.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=15s \
  CMD ["tunneltcp", "status", "--json", "--run-dir", "/run/tunneltcp/master"]
ENTRYPOINT ["/opt/tunneltcp/venv/bin/python", "-P", "-m", "tunneltcp.master", \
  "--run-dir", "/run/tunneltcp/master", \
  "--state-dir", "/var/lib/tunneltcp", \
  "--log-dir", "/var/log/tunneltcp"]
CMD ["--role", "server", "--config", "/etc/tunneltcp/server.json"]
