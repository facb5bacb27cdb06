// Make the search work in pages that are opened from the disk, where browsers refuse web workers: run the worker's script in a hidden frame.
// The theme would load such a script from another site (https://github.com/squidfunk/iframe-worker).
if (location.protocol === "file:") {
  const prelude = () => {
    postMessage = data => parent.postMessage(data, "*")
    importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise(done => {
      const script = document.createElement("script")
      script.src = url
      script.onload = done
      document.body.append(script)
    })), Promise.resolve())
  }

  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const { contentWindow: inner, contentDocument: page } = this.frame
      page.open()
      page.write(`<body><script>(${prelude})()<\/script><script src="${url}"><\/script></body>`)
      page.close()
      this.loaded = new Promise(done => { inner.onload = done })
      addEventListener("message", event => {
        if (event.source !== inner) return
        const message = new MessageEvent("message", { data: event.data })
        this.dispatchEvent(message)
        this.onmessage?.(message)
      })
    }

    postMessage(data) {
      this.loaded.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
