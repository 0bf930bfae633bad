// The AWS SDK for JavaScript, version 3; see ../../matrix/driver.py for questions and answers.

import { createReadStream, createWriteStream } from "node:fs";
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import * as s3 from "@aws-sdk/client-s3";
import { Upload } from "@aws-sdk/lib-storage";
import { getSignedUrl } from "@aws-sdk/s3-request-presigner";

const MIB = 1024 * 1024;
const client = new s3.S3Client({ endpoint: process.env.MATRIX_ENDPOINT, region: "us-east-1", forcePathStyle: true });

const upload = async (bucket, key, Body, partSize = 5 * MIB) => {
  const done = await new Upload({ client, partSize, params: { Bucket: bucket, Key: key, Body } }).done();
  return { etag: done.ETag };
};

const put = async (bucket, key, file, condition) => {
  const Body = await readFile(file);
  const told = await client.send(new s3.PutObjectCommand({ Bucket: bucket, Key: key, Body, ...condition }));
  return { etag: told.ETag };
};

const copy = async (bucket, key, to, condition) => {
  // The header is the caller's to encode.
  const CopySource = `${bucket}/${key.split("/").map(encodeURIComponent).join("/")}`;
  await client.send(new s3.CopyObjectCommand({ Bucket: bucket, Key: to, CopySource, ...condition }));
};

const get = async (bucket, key, to, Range) => {
  const told = await client.send(new s3.GetObjectCommand({ Bucket: bucket, Key: key, Range }));
  await pipeline(told.Body, createWriteStream(to));
};

// A stream without a path: nobody can look up how long it is.
const pipe = (file) => Readable.from(createReadStream(file), { objectMode: false });

async function* failing(file, bytes) {
  for await (const piece of createReadStream(file)) {
    bytes -= piece.length;
    if (bytes < 0) throw new Error("the source failed");
    yield piece;
  }
}

const notOffered = { odd_names_without: "all", sync_up: "it copies objects, not trees" };

const operations = {
  put: ({ bucket, key, file }) => upload(bucket, key, createReadStream(file)),
  put_stream: ({ bucket, key, file }) => upload(bucket, key, pipe(file)),
  get: ({ bucket, key, to }) => get(bucket, key, to),
  range: ({ bucket, key, offset, length, to }) => get(bucket, key, to, `bytes=${offset}-${offset + length - 1}`),
  head: async ({ bucket, key }) => {
    const told = await client.send(new s3.HeadObjectCommand({ Bucket: bucket, Key: key }));
    return { size: told.ContentLength, etag: told.ETag };
  },
  list: async ({ bucket, prefix, page }) => {
    const keys = [];
    for await (const told of s3.paginateListObjectsV2({ client, pageSize: page }, { Bucket: bucket, Prefix: prefix })) {
      keys.push(...(told.Contents ?? []).map((entry) => entry.Key));
    }
    return { keys };
  },
  list_folder: async ({ bucket, prefix }) => {
    const told = await client.send(new s3.ListObjectsV2Command({ Bucket: bucket, Prefix: prefix, Delimiter: "/" }));
    return { keys: told.Contents.map((entry) => entry.Key), folders: told.CommonPrefixes.map((entry) => entry.Prefix) };
  },
  copy: ({ bucket, key, to }) => copy(bucket, key, to),
  copy_if_absent: ({ bucket, key, to }) => copy(bucket, key, to, { IfNoneMatch: "*" }),
  put_if_absent: ({ bucket, key, file }) => put(bucket, key, file, { IfNoneMatch: "*" }),
  put_if_match: ({ bucket, key, file, etag }) => put(bucket, key, file, { IfMatch: etag }),
  delete: async ({ bucket, key }) => {
    await client.send(new s3.DeleteObjectCommand({ Bucket: bucket, Key: key }));
  },
  delete_many: (question) => operations.delete_some(question),
  delete_some: async ({ bucket, keys }) => {
    const Delete = { Objects: keys.map((Key) => ({ Key })) };
    const told = await client.send(new s3.DeleteObjectsCommand({ Bucket: bucket, Delete }));
    const deleted = told.Deleted.map((entry) => entry.Key);
    if (told.Errors?.length || deleted.sort().join("\n") !== [...keys].sort().join("\n")) {
      throw new Error(`${JSON.stringify(told.Errors)} ${deleted}`);
    }
  },
  multipart: async ({ bucket, key, file, part_bytes }) => upload(bucket, key, await readFile(file), part_bytes),
  abort: async ({ bucket, key, upload }) => {
    const told = await client.send(new s3.ListMultipartUploadsCommand({ Bucket: bucket }));
    if (told.Uploads?.length !== 1 || told.Uploads[0].Key !== key || told.Uploads[0].UploadId !== upload) {
      throw new Error(JSON.stringify(told.Uploads));
    }
    await client.send(new s3.AbortMultipartUploadCommand({ Bucket: bucket, Key: key, UploadId: upload }));
  },
  give_up: ({ bucket, key, file }) =>
    upload(bucket, key, Readable.from(failing(file, 12 * MIB), { objectMode: false })),
  presign_get: async ({ bucket, key, seconds }) => ({
    url: await getSignedUrl(client, new s3.GetObjectCommand({ Bucket: bucket, Key: key }), { expiresIn: seconds }),
  }),
  presign_put: async ({ bucket, key, seconds }) => ({
    url: await getSignedUrl(client, new s3.PutObjectCommand({ Bucket: bucket, Key: key }), { expiresIn: seconds }),
  }),
};

const kinds = { NoSuchKey: "missing", NotFound: "missing", PreconditionFailed: "precondition" };

for await (const line of createInterface({ input: process.stdin })) {
  const { op, ...question } = JSON.parse(line);
  let answer;
  try {
    answer = op in notOffered ? { "not offered": notOffered[op] } : { ok: (await operations[op](question)) ?? {} };
  } catch (error) {
    console.error(error);
    answer = { error: kinds[error.name] ?? "other", message: `${error.name}: ${error.message}` };
  }
  process.stdout.write(`=> ${JSON.stringify(answer)}\n`);
}
