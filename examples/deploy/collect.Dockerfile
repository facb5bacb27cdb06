# A collector with the built-in simulator and the CARLA client. docs/deploy.md describes it.
#   python -m build
#   docker build -f examples/deploy/collect.Dockerfile -t avtd3-collect .
#   docker run --init -v /srv/avtd3:/data avtd3-collect collect data --config demo --steps 100000
FROM python:3.12-slim-bookworm

ARG VERSION=0.1.0
ENV PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1

COPY constraints.txt dist/avtd3-${VERSION}-py3-none-any.whl /tmp/install/
# The CPU build of PyTorch: a collector only runs the policy.
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu -c /tmp/install/constraints.txt torch==2.13.0 \
 && pip install --no-cache-dir -c /tmp/install/constraints.txt \
      "avtd3[carla] @ file:///tmp/install/avtd3-${VERSION}-py3-none-any.whl" \
 && rm -r /tmp/install \
 && useradd --uid 1000 --create-home avtd3 \
 && install -d -o avtd3 -g avtd3 /data

USER 1000
WORKDIR /data
VOLUME /data
STOPSIGNAL SIGTERM
ENTRYPOINT ["avtd3"]
CMD ["--help"]
