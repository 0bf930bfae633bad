// Makes a container of Azurite: node container.js PORT ACCOUNT KEY CONTAINER
const crypto = require("crypto");
const http = require("http");

const [port, account, key, container] = process.argv.slice(2);
const date = new Date().toUTCString();
const headers = { "x-ms-date": date, "x-ms-version": "2023-11-03", "content-length": 0 };
const canonical = `x-ms-date:${date}\nx-ms-version:2023-11-03\n/${account}/${account}/${container}\nrestype:container`;
const text = `PUT${"\n".repeat(12)}${canonical}`;
const signature = crypto.createHmac("sha256", Buffer.from(key, "base64")).update(text, "utf8").digest("base64");
headers.authorization = `SharedKey ${account}:${signature}`;
const path = `/${account}/${container}?restype=container`;
const request = http.request({ host: "127.0.0.1", port, method: "PUT", path, headers }, (answer) => {
    if (answer.statusCode !== 201) {
        console.error(`the container was not made: ${answer.statusCode} ${answer.headers["x-ms-error-code"]}`);
        process.exitCode = 3;
    }
    answer.resume();
});
request.end();
