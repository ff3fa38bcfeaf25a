# One image, every service: the command says which (see docker-compose.yml).
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 \
    UV_NO_CACHE=1 \
    UV_SYSTEM_PYTHON=1 \
    MAILTIDE_HOME=/var/lib/mailtide

WORKDIR /opt/mailtide

# What changes seldom first, so that a changed line of code builds in seconds.
COPY requirements.lock ./
RUN pip install --no-cache-dir uv==0.13.8 && uv pip install --no-deps -r requirements.lock

COPY pyproject.toml README.md ./
COPY schemas schemas
COPY transport transport
COPY models models
COPY monitoring monitoring
COPY streams streams
COPY training training
COPY mailtide mailtide
RUN uv pip install --no-deps .

# A named volume takes the owner of the folder it is mounted on.
RUN useradd --uid 10001 --create-home mailtide && mkdir -p /var/lib/mailtide && chown mailtide:mailtide /var/lib/mailtide
USER mailtide

ENTRYPOINT ["mailtide"]
CMD ["up"]
