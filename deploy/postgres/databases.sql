-- Run once by the PostgreSQL image, when its data folder is empty: each service has a database of its own.
CREATE DATABASE wallet;
CREATE DATABASE batcher;
