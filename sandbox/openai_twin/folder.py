"""The twin's state on disk, so that a killed twin goes on where it was.

    files/<id>.json, .data       every file: what it is, and its content
    batches/<id>.json            every batch
    work/<id>.jsonl              the input of a running batch: a link, so that deleting the file does not stop the batch
    work/<id>.answers            its answers so far, one a line
    completions.jsonl            every chat completion answered outside a batch

A record is replaced by renaming a complete new one over it; an append that a kill cut short is cut off when it is read.
"""

import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from sandbox.openai_twin.batch import Batch, Json, StoredFile


class Folder:
    """All files and batches. One process owns a folder; records are kept in memory and written through."""

    def __init__(self, path: Path) -> None:
        self._files_path = path / "files"
        self._batches_path = path / "batches"
        self._work_path = path / "work"
        self._completions_path = path / "completions.jsonl"
        for each in (self._files_path, self._batches_path, self._work_path):
            each.mkdir(parents=True, exist_ok=True)
        for leftover in self._files_path.glob("upload-*"):
            leftover.unlink()
        self.files = {record["id"]: StoredFile(**record) for record in _records(self._files_path)}
        self.batches = {record["id"]: Batch(**record) for record in _records(self._batches_path)}
        sequences = [file.sequence for file in self.files.values()] + [each.sequence for each in self.batches.values()]
        self._sequence = max(sequences, default=0)

    def next_sequence(self) -> int:
        """A number larger than all before."""
        self._sequence += 1
        return self._sequence

    def open_upload(self) -> BinaryIO:
        """A new file to write an upload into; hand it to keep_upload when it is whole."""
        return (self._files_path / f"upload-{uuid.uuid4().hex}").open("wb")

    def keep_upload(
        self, upload: BinaryIO, *, filename: str, purpose: str, created_at: int, expires_at: int | None
    ) -> StoredFile:
        """Makes a written upload a file."""
        upload.close()
        written = Path(upload.name)
        file_id = f"file-{uuid.uuid4().hex}"
        size = written.stat().st_size
        record = StoredFile(file_id, size, created_at, filename, purpose, expires_at, self.next_sequence())
        written.rename(self.content_path(file_id))
        _replace(self._files_path / f"{file_id}.json", asdict(record))
        self.files[file_id] = record
        return record

    @staticmethod
    def drop_upload(upload: BinaryIO) -> None:
        """Forgets an upload that was refused."""
        upload.close()
        Path(upload.name).unlink(missing_ok=True)

    def find_file(self, file_id: str, now: int) -> StoredFile | None:
        """The file, unless there is none or it has expired by `now`, in unix seconds."""
        record = self.files.get(file_id)
        if record is None or (record.expires_at is not None and record.expires_at <= now):
            return None
        return record

    def content_path(self, file_id: str) -> Path:
        """Where a file's content is."""
        return self._files_path / f"{file_id}.data"

    def delete_file(self, file_id: str) -> None:
        """Deletes a file for good."""
        (self._files_path / f"{file_id}.json").unlink()
        self.content_path(file_id).unlink()
        del self.files[file_id]

    def save_batch(self, batch: Batch) -> None:
        """Writes a batch down."""
        self.batches[batch.id] = batch
        _replace(self._batches_path / f"{batch.id}.json", asdict(batch))

    def link_input(self, batch: Batch) -> Path:
        """A running batch's input, which outlives its file; raises FileNotFoundError if that was deleted before."""
        path = self._work_path / f"{batch.id}.jsonl"
        if not path.exists():
            os.link(self.content_path(batch.input_file_id), path)
        return path

    def open_answers(self, batch_id: str) -> BinaryIO:
        """The answers of a running batch, to append to; a line that a kill cut short is cut off first."""
        path = self._answers_path(batch_id)
        whole_bytes = 0
        if path.exists():
            content = path.read_bytes()
            whole_bytes = content.rfind(b"\n") + 1
        answers = path.open("ab")
        answers.truncate(whole_bytes)
        return answers

    def read_answers(self, batch_id: str) -> list[Json]:
        """The answers written so far, whole lines only."""
        path = self._answers_path(batch_id)
        if not path.exists():
            return []
        content = path.read_bytes()
        return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]

    def clear_work(self, batch_id: str) -> None:
        """Deletes what only a running batch needs."""
        (self._work_path / f"{batch_id}.jsonl").unlink(missing_ok=True)
        self._answers_path(batch_id).unlink(missing_ok=True)

    def note_completion(self, note: Json) -> None:
        """Writes down that a chat completion was answered."""
        with self._completions_path.open("a") as completions:
            completions.write(json.dumps(note) + "\n")

    def count_completions(self) -> int:
        """How many chat completions were answered outside batches."""
        if not self._completions_path.exists():
            return 0
        return self._completions_path.read_bytes().count(b"\n")

    def _answers_path(self, batch_id: str) -> Path:
        return self._work_path / f"{batch_id}.answers"


def _records(folder: Path) -> Iterator[Json]:
    for path in sorted(folder.glob("*.json")):
        yield json.loads(path.read_text())


def _replace(path: Path, record: Json) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(record))
    new.replace(path)
