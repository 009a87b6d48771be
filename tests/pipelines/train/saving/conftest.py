from tests.kineograph.store.s3 import s3, s3_server  # noqa: F401
