# JupyterLab with a GPU, as an ordinary user, behind a token:
#
#   docker build -t csd-kit .
#   docker run --rm -it --gpus all -p 127.0.0.1:8888:8888 csd-kit
#
# Leave out --gpus all on a machine without one. The CUDA libraries come with torch; the host needs
# only a driver and the NVIDIA container toolkit. Add -v csd-runs:/home/student/csd-kit/runs to keep
# the runs, and -v /path/to/cifar100.npz:/home/student/csd-kit/data/cifar100.npz:ro if it is there.
FROM python:3.11-slim

RUN useradd --create-home student
USER student
RUN mkdir -p /home/student/csd-kit
WORKDIR /home/student/csd-kit
ENV PATH=/home/student/.local/bin:$PATH PIP_NO_CACHE_DIR=1

# The packages first: they change less often than the code. The kit's own folders must be there when it
# is installed; what is in them comes later.
RUN mkdir -p data/results csd_lib/paper csd_lib/course/checkers csd_lib/integrations
COPY --chown=student pyproject.toml constraints.txt README.md ./
COPY --chown=student csd_lib/__init__.py csd_lib/__init__.py
RUN pip install --user -c constraints.txt -e ".[lab,test]"
COPY --chown=student . .
RUN mkdir -p runs

EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "--notebook-dir=notebooks"]
