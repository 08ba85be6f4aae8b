"""An HTTP server that does what OpenAI's Files, Batch and Chat Completions APIs do, and looks at the pixels it is sent.

It exists so that the whole of Punchcard can be run and tested with the real `openai` client and no account. Shapes,
states, limits and error codes are those of the real API; the answers are not a model's but measurements, true of the
image, which a test can check. Its state is a folder, and it goes on with its batches after a kill.

    vision      what can be said of an image by looking at its pixels          pure
    answer      a chat request in, a chat completion out                       pure
    input_file  what is wrong with the lines of a batch's input file           pure
    batch_request  what is wrong with a request to create a batch              pure
    batch       a batch and a file as the API shows them                       pure
    folder      both on disk
    http_images the image of a request, downloaded or decoded
    batch_worker  takes each batch through its states
    http_api    the edge
"""
