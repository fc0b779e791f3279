# The service on its committed weights: docker build -t drawbridge .
# For an NVIDIA GPU: --build-arg TORCH=cu130. To train: --target training.
ARG PYTHON=python:3.11-slim

FROM ${PYTHON} AS packages
# Which of PyTorch's builds: cpu, or one for CUDA.
ARG TORCH=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/${TORCH}
WORKDIR /app
COPY requirements.lock service.lock ./
# torch in the pinned version, as its own index has it for the device; then what the service needs besides, by its hashes.
RUN python3 -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --no-compile --extra-index-url "${TORCH_INDEX}" \
        "$(grep -oE '^torch==[^ ]+' requirements.lock)" \
    && /venv/bin/pip install --no-cache-dir --no-compile --no-deps --require-hashes --requirement service.lock
# What is in there, for whoever has to know (CycloneDX).
RUN python3 -m venv /sbom \
    && /sbom/bin/pip install --no-cache-dir cyclonedx-bom==7.5.0 \
    && /sbom/bin/cyclonedx-py environment --output-file /app/sbom.cdx.json /venv/bin/python

FROM packages AS training
COPY pyproject.toml ./
RUN python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["training"], sep="\n")' \
        > needed.txt \
    && grep -oE '^[a-z0-9-]+==[^ ]+' requirements.lock > pinned.txt \
    && /venv/bin/pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" \
        --constraint pinned.txt --requirement needed.txt
COPY models models
COPY training training
COPY weights weights
RUN mkdir runs data && chown 10001:10001 runs data
USER 10001:10001
ENV PATH=/venv/bin:$PATH HOME=/tmp DRAWBRIDGE_DATA=/app/data
ENTRYPOINT ["python", "-m", "training"]
CMD ["--help"]

FROM ${PYTHON} AS service
COPY --from=packages /venv /venv
WORKDIR /app
COPY --from=packages /app/sbom.cdx.json ./
COPY models models
COPY service service
COPY docs/lab docs/lab
COPY weights weights
USER 10001:10001
# Nothing is written: the root file system may be read-only.
ENV PATH=/venv/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 DRAWBRIDGE_HOST=0.0.0.0
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=12s --start-period=60s --retries=3 \
    CMD ["python", "-m", "service", "health"]
ENTRYPOINT ["python", "-m", "service"]
