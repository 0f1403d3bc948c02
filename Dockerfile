# One image for every process; what follows `python -m` says which. It holds no configuration
# and no secret: both come from the environment (docs/configuration.md).

FROM python:3.13-slim AS build
# Only where PyPI is reached by another way: compose.yaml passes it on from the environment.
ARG PIP_INDEX_URL
WORKDIR /app
COPY pyproject.toml constraints.txt ./
# The dependencies alone, so that a change in the code does not fetch them again.
RUN python -m venv --without-pip /venv \
 && python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
 && pip --python /venv/bin/python install --no-cache-dir --root-user-action=ignore \
      -c constraints.txt -r requirements.txt
COPY . ./
# Compiled now: the user may not write here, and a killed process should be back at once.
RUN rm pyproject.toml *.txt && chmod -R a+rX . && python -m compileall -q .

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin sagaproof
COPY --from=build /venv /venv
COPY --from=build /app /app
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    SAGAPROOF_HEALTH_HOST=0.0.0.0 \
    SAGAPROOF_HEALTH_PORT=8081
WORKDIR /app
USER sagaproof
EXPOSE 8081
# -IS: the standard library is all it needs; it starts in half the time.
HEALTHCHECK --interval=5s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-IS", "-c", \
    "from http.client import HTTPConnection; c = HTTPConnection('127.0.0.1', 8081, timeout=3); c.request('GET', '/ready'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["python", "-m"]
