"""An HTTP server that does what OpenAI's Files, Batch and Chat Completions APIs do, and looks at the pixels it is sent.

It exists so that the whole of Punchcard can be run and tested with the real `openai` client and no account. Shapes,
states, limits and error codes are those of the real API; the answers are not a model's but measurements, true of the
image, which a test can check. Its state is a folder, and it goes on with its batches after a kill.

    vision      what can be said of an image by looking at its pixels          pure
    answer      a chat request in, a chat completion out                       pure
    input_file  what is wrong with the lines of a batch's input file           pure
    batch_request  what is wrong with a request to create a batch              pure
    batch       a batch and a file as the API shows them                       pure
    known_failures  how users of the real API saw it fail                      pure
    fault_kinds     the vocabulary of faults, which play these failures        pure
    faults          which fault strikes when: scripts and storms               pure
    line_faults     what a question gets instead of its answer                 pure
    result_faults   what becomes of a batch's result files                     pure
    webhook         what a webhook says, and its signature                     pure
    folder      batches and files on disk
    fault_book  the script of a running twin, on disk, and what has struck
    http_images the image of a request, downloaded or decoded
    batch_faults  what faults do to a batch on its way
    result_files  writes the result files of a batch
    batch_worker  takes each batch through its states
    webhook_sender  tells of each batch that ended
    http_faults what faults do to requests
    http_twin   the twin's own routes: books, faults, webhooks
    http_api    the edge
    command_line  the options for faults
"""
