# A learner for NVIDIA GPUs, and for CPUs. docs/deploy.md describes it.
#   python -m build
#   docker build -f examples/deploy/learn.Dockerfile -t avtd3-learn .
#   docker run --init --gpus all --shm-size 1g -v /srv/avtd3:/data avtd3-learn learn data --run run --config demo
FROM python:3.12-slim-bookworm

ARG VERSION=0.1.0
ENV PYTHONUNBUFFERED=1

COPY constraints.txt dist/avtd3-${VERSION}-py3-none-any.whl /tmp/install/
# PyPI's build of PyTorch brings CUDA; the driver is the host's.
RUN pip install --no-cache-dir -c /tmp/install/constraints.txt \
      "avtd3[native] @ file:///tmp/install/avtd3-${VERSION}-py3-none-any.whl" \
 && rm -r /tmp/install \
 && useradd --uid 1000 --create-home avtd3 \
 && install -d -o avtd3 -g avtd3 /data

USER 1000
WORKDIR /data
VOLUME /data
STOPSIGNAL SIGTERM
ENTRYPOINT ["avtd3"]
CMD ["--help"]
