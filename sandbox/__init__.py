"""Everything that runs Punchcard on one machine, with no account anywhere and no container.

demo            photographs through everything, told step by step
stack           the processes: S3, the provider's twin, the wallet, the batcher
token           a bearer token for grpcurl
openai_twin/    what answers in OpenAI's place
samples/        six photographs

plan            which parts run, where, with whom                          keys      secrets, made once
launches        the command and environment of each part                   process   one process, found again
probes          whether a part is ready                                    s3        rclone's S3 over a folder
account_check   whether an account's money adds up (pure)                  display   a terminal, or plain lines
"""
