# The server on a CPU. The artifact is mounted, not built in:
#   docker build -t cleave .
#   docker run -p 8000:8000 -v "$PWD/model_files/demo-artifact:/artifact:ro" cleave
FROM python:3.12-slim

COPY . /src
RUN pip install --no-cache-dir "/src[server,structured]" && rm -rf /src

# Where numba keeps what it has compiled.
ENV NUMBA_CACHE_DIR=/tmp/numba
USER nobody
EXPOSE 8000
HEALTHCHECK --start-period=120s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/ready')"]
ENTRYPOINT ["cleave", "serve", "/artifact", "--host", "0.0.0.0"]
