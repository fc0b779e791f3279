# The service with the committed weights: docker build -t drawbridge .
# For an NVIDIA GPU add --build-arg TORCH=cu130. For training add --target training.
ARG PYTHON=python:3.11-slim

FROM ${PYTHON} AS packages
# The build of PyTorch: cpu, or one for CUDA.
ARG TORCH=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/${TORCH}
WORKDIR /app
COPY requirements.lock service.lock ./
# torch in the locked version comes from its own index, which has a build for each device. All else has locked hashes.
RUN python3 -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --no-compile --extra-index-url "${TORCH_INDEX}" \
        "$(grep -oE '^torch==[^ ]+' requirements.lock)" \
    && /venv/bin/pip install --no-cache-dir --no-compile --no-deps --require-hashes --requirement service.lock
# A CycloneDX list of the installed packages, for audits.
RUN python3 -m venv /sbom \
    && /sbom/bin/pip install --no-cache-dir cyclonedx-bom==7.5.0 \
    && /sbom/bin/cyclonedx-py environment --output-file /app/sbom.cdx.json /venv/bin/python

# The project's own wheel. It is installed below /installed, so that the images get it as a layer of its own.
FROM packages AS project
RUN python3 -m venv /build \
    && grep -oE '^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==[^ ]+' requirements.lock > build.txt \
    && /build/bin/pip install --no-cache-dir --no-deps --requirement build.txt
COPY pyproject.toml README.md LICENSE ./
COPY drawbridge drawbridge
COPY models models
COPY pictures pictures
COPY service service
COPY training training
COPY weights weights
COPY docs/lab docs/lab
RUN /build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /venv/bin/pip install --no-cache-dir --no-compile --no-deps --no-index --root /installed /wheels/*.whl

FROM packages AS training
COPY pyproject.toml ./
RUN python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["training"], sep="\n")' \
        > training.txt \
    && grep -oE '^[a-z0-9-]+==[^ ]+' requirements.lock > locked.txt \
    && /venv/bin/pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" \
        --constraint locked.txt --requirement training.txt
COPY --from=project /installed /
COPY weights weights
RUN mkdir runs data && chown 10001:10001 runs data
USER 10001:10001
ENV PATH=/venv/bin:$PATH HOME=/tmp DRAWBRIDGE_DATA=/app/data
ENTRYPOINT ["drawbridge"]
CMD ["--help"]

FROM ${PYTHON} AS service
ARG TORCH=cpu
# On a GPU, Triton compiles fused kernels at the first start: it needs a C compiler, and keeps what it made in /triton.
# hadolint ignore=DL3008
RUN case "${TORCH}" in cu*) \
        apt-get update \
        && apt-get install --yes --no-install-recommends gcc libc6-dev \
        && rm -rf /var/lib/apt/lists/* ;; \
    esac \
    && mkdir /triton \
    && chown 10001:10001 /triton
COPY --from=packages /venv /venv
WORKDIR /app
COPY --from=packages /app/sbom.cdx.json ./
COPY --from=project /installed /
USER 10001:10001
# The service writes to /tmp only: the root file system may be read-only.
ENV PATH=/venv/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 DRAWBRIDGE_HOST=0.0.0.0
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=12s --start-period=60s --retries=3 \
    CMD ["drawbridge", "health"]
ENTRYPOINT ["drawbridge"]
CMD ["serve"]
