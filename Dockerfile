# One file, a target per service:
#   docker build --target wallet -t punchcard-wallet .
#   docker build --target batcher -t punchcard-batcher .
#   docker build --target twin -t punchcard-twin .      (the stand-in for OpenAI, for trying things out)

FROM python:3.12-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/app:/app/gen PIP_NO_CACHE_DIR=1
WORKDIR /app
RUN useradd --system --uid 10001 --home-dir /data --create-home punchcard
COPY deploy/healthcheck.py /app/deploy/healthcheck.py
COPY gen /app/gen
COPY services/__init__.py /app/services/__init__.py
COPY services/chassis /app/services/chassis

FROM base AS wallet
COPY requirements/wallet.txt /tmp/requirements.txt
RUN pip install --require-hashes -r /tmp/requirements.txt
COPY services/wallet /app/services/wallet
USER punchcard
ENV WALLET_LISTEN_ADDRESS=0.0.0.0:50051 WALLET_METRICS_ADDRESS=0.0.0.0:9101 WALLET_LOG_FORMAT=json
EXPOSE 50051 9101
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["python", "deploy/healthcheck.py", "127.0.0.1:50051"]
ENTRYPOINT ["python", "-m", "services.wallet"]
CMD ["serve"]

FROM base AS batcher
COPY requirements/batcher.txt /tmp/requirements.txt
RUN pip install --require-hashes -r /tmp/requirements.txt
COPY services/batcher /app/services/batcher
COPY punchcard_client /app/punchcard_client
USER punchcard
ENV BATCHER_LISTEN_ADDRESS=0.0.0.0:50052 BATCHER_METRICS_ADDRESS=0.0.0.0:9102 BATCHER_LOG_FORMAT=json
EXPOSE 50052 9102
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["python", "deploy/healthcheck.py", "127.0.0.1:50052"]
ENTRYPOINT ["python", "-m", "services.batcher"]
CMD ["serve"]

FROM base AS twin
COPY requirements/sandbox.txt /tmp/requirements.txt
RUN pip install --require-hashes -r /tmp/requirements.txt
COPY services /app/services
COPY punchcard_client /app/punchcard_client
COPY sandbox /app/sandbox
COPY deploy/make_keys.py /app/deploy/make_keys.py
USER punchcard
EXPOSE 8080
ENTRYPOINT ["python", "-m"]
CMD ["sandbox.openai_twin", "--host", "0.0.0.0", "--port", "8080", "--data", "/data/twin"]
